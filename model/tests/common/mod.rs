//! A small whole artefact, taken apart so that tests can break it.

use std::collections::{BTreeMap, HashMap};

use requant_model::ops::{Conv, Dequantize, Gemm, MaxPool, Quantize, Reshape, Window};
use requant_model::spec::{Linear, RequantizeSpec, SchemeSpec, WeightSpec};
use requant_model::{Affine, Graph, Node, Op, Tensor, Value, ValueId, artifact};
use requant_numerics::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use sha2::Digest;

/// f32 [1,4,4,2] → u8 → conv 3×3 → max pool 2×2 → [1,12] → i4 product → f32 [1,5].
pub(crate) fn graph() -> Graph {
    let mut graph = Graph {
        name: "base".to_owned(),
        batched: true,
        ..Graph::default()
    };
    let mut value = |name: &str, dtype, dims: &[usize], quant: Option<(f32, i32)>| {
        let quant = quant.map(|(scale, zero_point)| Affine { scale, zero_point });
        let (name, dims) = (name.to_owned(), dims.to_vec());
        graph.add_value(Value {
            name,
            dtype,
            dims,
            batched: true,
            quant,
        })
    };
    let image = value("image", DType::F32, &[1, 4, 4, 2], None);
    let x = value("x", DType::U8, &[1, 4, 4, 2], Some((0.02, 128)));
    let conv = value("conv", DType::U8, &[1, 4, 4, 3], Some((0.05, 0)));
    let pool = value("pool", DType::U8, &[1, 2, 2, 3], Some((0.05, 0)));
    let flat = value("flat", DType::U8, &[1, 12], Some((0.05, 0)));
    let acc = value("acc", DType::I32, &[1, 5], Some((0.001, 0)));
    let logits = value("logits", DType::F32, &[1, 5], None);
    let mut tensor = |name: &str, dtype, dims: &[usize], values: Vec<i64>| {
        let tensor = Tensor::from_integers(dtype, dims.to_vec(), &values).unwrap();
        graph.tensors.insert(name.to_owned(), tensor);
        name.to_owned()
    };
    let conv_weights = (0..54).map(|i| (i * 37) % 255 - 127).collect();
    let linear = Linear {
        weights: Some(WeightSpec {
            tensor: tensor("conv.w", DType::I8, &[3, 3, 3, 2], conv_weights),
            zero_points: None,
            groups: None,
        }),
        bias: Some(tensor("conv.bias", DType::I32, &[3], vec![100, -200, 300])),
        requantize: Some(RequantizeSpec {
            scheme: SchemeSpec::Rhu {
                m: tensor(
                    "conv.m",
                    DType::I32,
                    &[3],
                    vec![5_000_000, 6_000_000, 7_000_000],
                ),
                s: tensor("conv.s", DType::U8, &[3], vec![32; 3]),
            },
            lo: 0,
            hi: 255,
        }),
        ..Linear::default()
    };
    let fc = Linear {
        weights: Some(WeightSpec {
            tensor: tensor(
                "fc.w",
                DType::I4,
                &[5, 12],
                (0..60).map(|i| i % 15 - 7).collect(),
            ),
            zero_points: None,
            groups: None,
        }),
        bias: Some(tensor("fc.bias", DType::I32, &[5], vec![1, 2, 3, 4, 5])),
        ..Linear::default()
    };
    let window = |kernel, strides, pads| Window {
        kernel: [kernel; 2],
        strides: [strides; 2],
        pads: [pads; 4],
        dilations: [1; 2],
        ceil: false,
    };
    let mut node = |name: &str, op, input: ValueId, output: ValueId| {
        let name = name.to_owned();
        graph.nodes.push(Node {
            name,
            op,
            inputs: vec![input],
            outputs: vec![output],
        });
    };
    node("quantize", Op::Quantize(Quantize::default()), image, x);
    node(
        "conv",
        Op::Conv(Conv {
            linear,
            window: window(3, 1, 1),
            groups: 1,
        }),
        x,
        conv,
    );
    node(
        "pool",
        Op::MaxPool(MaxPool {
            window: window(2, 2, 0),
        }),
        conv,
        pool,
    );
    node("flatten", Op::Reshape(Reshape {}), pool, flat);
    node("fc", Op::Gemm(Gemm { linear: fc }), flat, acc);
    node(
        "dequantize",
        Op::Dequantize(Dequantize::default()),
        acc,
        logits,
    );
    graph.inputs = vec![image];
    graph.outputs = vec![logits];
    graph
        .provenance
        .insert("source".to_owned(), "test".to_owned());
    graph
}

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// The artefact of [`graph`] in pieces.
pub(crate) struct File {
    pub(crate) manifest: Json,
    pub(crate) tensors: BTreeMap<String, Stored>,
}

pub(crate) fn base() -> File {
    let bytes = artifact::write(&graph()).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let manifest = &metadata.metadata().as_ref().unwrap()[artifact::KEY];
    let container = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView<'_>)| {
        (
            name,
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    File {
        manifest: serde_json::from_str(manifest).unwrap(),
        tensors: container.tensors().into_iter().map(stored).collect(),
    }
}

impl File {
    pub(crate) fn value(&mut self, index: usize) -> &mut Json {
        &mut self.manifest["values"][index]
    }

    pub(crate) fn node(&mut self, index: usize) -> &mut Json {
        &mut self.manifest["nodes"][index]
    }

    pub(crate) fn entry(&mut self, name: &str) -> &mut Json {
        &mut self.manifest["tensors"][name]
    }

    /// Changes a tensor and its checksum.
    pub(crate) fn edit(&mut self, name: &str, change: impl Fn(&mut Stored)) {
        let tensor = self.tensors.get_mut(name).unwrap();
        change(tensor);
        let digest = sha2::Sha256::digest(&tensor.2);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.manifest["tensors"][name]["sha256"] = digest.into();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, dims, data))| {
            (name, TensorView::new(*dtype, dims.clone(), data).unwrap())
        });
        let metadata = HashMap::from([(artifact::KEY.to_owned(), self.manifest.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}
