//! `requant-quantize run`: arrays from files through a model, offline.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use requant_npy::Array;
use requant_quantize::files;
use requant_quantize::run::Model;
use requant_runtime::{Form, TensorInfo};

use crate::device::Device;
use crate::print::{NamedFile, element, heading, tensor, unique};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Model: an artefact, a quantized ONNX or TFLite file, or a folder with one
    model: PathBuf,
    /// Array for an input, the batch dimension included; once for each input. An array of the network's
    /// own integers skips the edge
    #[arg(long, value_name = "NAME=FILE.npy", required = true)]
    input: Vec<NamedFile>,
    /// File to write an output to; outputs not named are then left out
    #[arg(long, value_name = "NAME=FILE.npy")]
    output: Vec<NamedFile>,
    #[command(flatten)]
    device: Device,
}

impl Run {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        unique(&self.input, "--input")?;
        unique(&self.output, "--output")?;
        let graph = files::read_model(&self.model)?;
        let model = Model::new(graph, &*self.device.open()?)?;
        let names = |infos: &[TensorInfo]| {
            let names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
            names.join(", ")
        };
        let known = |files: &[NamedFile], infos: &[TensorInfo], what| match files
            .iter()
            .find(|file| infos.iter().all(|info| info.name != file.name))
        {
            Some(file) => bail!(
                "the model has no {what} '{}', it has {}",
                file.name,
                names(infos)
            ),
            None => Ok(()),
        };
        known(&self.input, model.inputs(), "input")?;
        known(&self.output, model.outputs(), "output")?;

        let mut samples = None;
        let mut inputs = Vec::new();
        for info in model.inputs() {
            let Some(file) = self.input.iter().find(|file| file.name == info.name) else {
                bail!("no --input for '{}'", info.name);
            };
            let at = || file.file.display().to_string();
            let array = requant_npy::read(&file.file).with_context(at)?;
            let (form, count) = fit(&array, info, model.batched()).with_context(at)?;
            let first = *samples.get_or_insert(count);
            ensure!(
                count == first,
                "{}: {count} samples, the other inputs have {first}",
                at()
            );
            inputs.push((form, array));
        }
        let samples = samples.unwrap_or(1);
        let data: Vec<(Form, &[u8])> = inputs
            .iter()
            .map(|(form, array)| (*form, &array.data[..]))
            .collect();
        let outputs = model.run(samples, &data)?;
        let arrays = outputs
            .into_iter()
            .zip(model.outputs())
            .map(|(bytes, info)| Array {
                element: element(info.dtype),
                shape: if model.batched() {
                    [&[samples], &info.dims[..]].concat()
                } else {
                    info.dims.clone()
                },
                data: bytes.into(),
            });

        let mut text = String::new();
        for (info, array) in model.outputs().iter().zip(arrays) {
            if self.output.is_empty() {
                text.push_str(&tensor(&info.name, &array));
            } else if let Some(file) = self.output.iter().find(|file| file.name == info.name) {
                let bytes = requant_npy::render(&array)?;
                files::write(&file.file, &bytes)?;
                text.push_str(&format!(
                    "{}: {}\n",
                    heading(&info.name, &array),
                    file.file.display()
                ));
            }
        }
        Ok(text)
    }
}

/// In which form an array enters an input, and how many samples it holds.
fn fit(array: &Array, info: &TensorInfo, batched: bool) -> anyhow::Result<(Form, usize)> {
    let (samples, dims) = match array.shape.split_first() {
        Some((&samples, dims)) if batched => (samples, dims),
        _ => (1, &array.shape[..]),
    };
    let whole = !batched || array.shape.len() > info.dims.len();
    if dims != info.dims || !whole || samples == 0 {
        let batch = if batched { "N, " } else { "" };
        let extents: Vec<String> = info.dims.iter().map(usize::to_string).collect();
        bail!(
            "the array has shape {:?}, the input '{}' takes [{batch}{}]",
            array.shape,
            info.name,
            extents.join(", ")
        );
    }
    if array.element == element(info.dtype) {
        return Ok((Form::Declared, samples));
    }
    match &info.quantized {
        Some(own) if array.element == element(own.dtype) => Ok((Form::Quantized, samples)),
        Some(own) => bail!(
            "the array holds {}, the input '{}' takes {} or {}",
            array.element,
            info.name,
            element(info.dtype),
            element(own.dtype)
        ),
        None => bail!(
            "the array holds {}, the input '{}' takes {}",
            array.element,
            info.name,
            element(info.dtype)
        ),
    }
}
