//! Whether two backends answer with the same bytes, asked of a model before one of them is trusted.

use crate::profile::random_bytes;
use crate::{ExecError, Executable, Form};

/// Samples that are compared of a model that takes batches: more than one, and no power of two.
const SAMPLES: usize = 3;

/// Whether two executables of the same plan answer the same pseudo-random inputs with the same bytes.
///
/// # Errors
/// As [`Executable::instance`] and [`crate::Instance::run`] of either.
pub fn same_bytes(left: &dyn Executable, right: &dyn Executable) -> Result<bool, ExecError> {
    let samples = if left.plan().signature().batched {
        SAMPLES
    } else {
        1
    };
    Ok(answers(left, samples)? == answers(right, samples)?)
}

/// The bytes of all outputs, as the model declares them.
fn answers(executable: &dyn Executable, samples: usize) -> Result<Vec<Vec<u8>>, ExecError> {
    let signature = executable.plan().signature();
    let mut instance = executable.instance(samples)?;
    for (index, info) in signature.inputs.iter().enumerate() {
        let data = random_bytes(info.dtype, info.elements() * samples);
        instance.write_input(index, 0, samples, Form::Declared, &data)?;
    }
    instance.run(samples)?;
    let outputs = signature.outputs.iter().enumerate();
    outputs
        .map(|(index, info)| {
            let mut data = vec![0; info.bytes(Form::Declared).unwrap_or(0) * samples];
            instance.read_output(index, 0, samples, Form::Declared, &mut data)?;
            Ok(data)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use requant_model::{artifact, builtin};

    use super::*;
    use crate::{
        Backend, CpuBackend, CpuOptions, Footprint, Instance, Plan, PlanOptions, ReferenceBackend,
        RunStats,
    };

    /// One bit of the last sample's answer is wrong.
    struct Wrong<T>(T);

    impl Executable for Wrong<Arc<dyn Executable>> {
        fn plan(&self) -> &Arc<Plan> {
            self.0.plan()
        }

        fn footprint(&self, max_batch: usize) -> Footprint {
            self.0.footprint(max_batch)
        }

        fn kernels(&self) -> Vec<&'static str> {
            self.0.kernels()
        }

        fn instance(&self, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
            Ok(Box::new(Wrong(self.0.instance(max_batch)?)))
        }
    }

    impl Instance for Wrong<Box<dyn Instance>> {
        fn max_batch(&self) -> usize {
            self.0.max_batch()
        }

        fn write_input(
            &mut self,
            input: usize,
            first: usize,
            samples: usize,
            form: Form,
            data: &[u8],
        ) -> Result<(), ExecError> {
            self.0.write_input(input, first, samples, form, data)
        }

        fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError> {
            self.0.run(samples)
        }

        fn read_output(
            &self,
            output: usize,
            first: usize,
            samples: usize,
            form: Form,
            data: &mut [u8],
        ) -> Result<(), ExecError> {
            self.0.read_output(output, first, samples, form, data)?;
            if let Some(last) = data.last_mut() {
                *last ^= 1;
            }
            Ok(())
        }
    }

    #[test]
    fn a_wrong_bit_is_noticed() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let plan = Arc::new(Plan::new(graph, &PlanOptions::default()).unwrap());
        let cpu = CpuBackend::new(CpuOptions::default()).unwrap();
        let reference = ReferenceBackend.compile(Arc::clone(&plan)).unwrap();
        let cpu = cpu.compile(plan).unwrap();
        assert_eq!(same_bytes(&*cpu, &*reference), Ok(true));
        assert_eq!(same_bytes(&Wrong(cpu), &*reference), Ok(false));
    }
}
