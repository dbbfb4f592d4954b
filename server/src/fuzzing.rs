//! What a fuzzer calls: the two places where bytes from outside are taken apart by our own code.
//! They are here, as plain functions, so that a fuzz target is one line and the tests of this crate
//! can replay what it found.

use prost::Message as _;
use requant_numerics::DType;
use requant_proto::inference::ModelInferRequest;

use crate::{
    engine::{QuantizedForm, Signature, TensorInfo},
    infer::{Spec, admit},
    repository::{complete, parse_json, parse_text},
};

/// A signature with everything that a request can meet.
fn signature(batched: bool) -> Signature {
    let tensor = |name: &str, dtype, dims: &[usize], quantized| TensorInfo {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
        quantized,
    };
    let own = |dtype| {
        Some(QuantizedForm {
            dtype,
            scale: 0.5,
            zero_point: 3,
        })
    };
    Signature {
        batched,
        inputs: vec![
            tensor("x", DType::F32, &[2, 3], own(DType::U8)),
            tensor("i", DType::I8, &[4], None),
        ],
        outputs: vec![
            tensor("y", DType::F32, &[5], own(DType::I8)),
            tensor("k", DType::I64, &[], None),
        ],
    }
}

/// Reads bytes as a configuration, in both formats, and checks it against a model.
pub fn config(data: &[u8]) {
    let text = parse_text(data).ok();
    let json = std::str::from_utf8(data)
        .ok()
        .and_then(|text| parse_json(text).ok());
    for parsed in [text, json].into_iter().flatten() {
        for batched in [false, true] {
            // Refusing is fine; panicking is what a fuzzer looks for.
            let _ = complete("m", parsed.clone(), &signature(batched), true, &[]);
        }
    }
}

/// Reads bytes as an inference request and admits it, checking that what is admitted has exactly
/// the size that the engine will read.
///
/// # Panics
/// When a buffer of an admitted request has the wrong size: that is the finding.
pub fn request(data: &[u8]) {
    let Ok(request) = ModelInferRequest::decode(data) else {
        return;
    };
    for batched in [false, true] {
        let signature = signature(batched);
        let spec = Spec {
            signature: &signature,
            leading: batched,
            max_rows: 8,
        };
        if let Ok(admitted) = admit(&request, &spec) {
            assert!((1..=8).contains(&admitted.job.rows));
            assert_eq!(admitted.job.inputs.len(), signature.inputs.len());
            for ((form, bytes), info) in admitted.job.inputs.iter().zip(&signature.inputs) {
                assert_eq!(
                    Some(bytes.len()),
                    info.bytes(*form).map(|one| one * admitted.job.rows)
                );
            }
        }
    }
}
