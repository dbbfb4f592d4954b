//! `requant infer`: arrays from files to the server, and its outputs to the screen or to files.
//! What a file holds is what is sent; when the server refuses it, the model's own description says
//! how the array should look.

use requant_client::{
    Client, Code, Datatype, Error, InferRequest, InferResponse, Tensor,
    proto::{ModelMetadataResponse, model_metadata_response::TensorMetadata},
};
use requant_npy::ElementType;

use crate::{
    args::{Infer, NamedFile},
    failure::Failure,
    print,
};

/// Reads the input files, before any connection is made.
pub(crate) fn read_inputs(infer: &Infer) -> Result<Vec<Tensor>, Failure> {
    unique(&infer.input, "--input")?;
    unique(&infer.output, "--output")?;
    infer.input.iter().map(read_input).collect()
}

/// Runs the model and gives back what to print.
pub(crate) async fn run(
    client: &Client,
    infer: &Infer,
    inputs: Vec<Tensor>,
) -> Result<String, Failure> {
    let mut request = InferRequest::new(&infer.model)
        .version(&infer.version)
        .id(&infer.id);
    for tensor in &inputs {
        request = request.input(tensor.clone());
    }
    for output in &infer.output {
        request = request.output(&output.name);
    }
    let response = match client.infer(request).await {
        Ok(response) => response,
        Err(error) => return Err(explain(client, infer, &inputs, error).await),
    };

    let mut text = String::new();
    if !response.id.is_empty() {
        text.push_str(&format!("id: {}\n", response.id));
    }
    if infer.output.is_empty() {
        for tensor in &response.outputs {
            text.push_str(&print::tensor(tensor).map_err(Error::from)?);
        }
    } else {
        for output in &infer.output {
            text.push_str(&write_output(&response, output)?);
        }
    }
    Ok(text)
}

fn unique(files: &[NamedFile], flag: &str) -> Result<(), Failure> {
    for (index, file) in files.iter().enumerate() {
        if files
            .iter()
            .take(index)
            .any(|other| other.name == file.name)
        {
            return Err(Failure::Usage(format!(
                "{flag} names {:?} twice",
                file.name
            )));
        }
    }
    Ok(())
}

fn read_input(NamedFile { name, file }: &NamedFile) -> Result<Tensor, Failure> {
    let usage = |cause: String| Failure::Usage(format!("{}: {cause}", file.display()));
    let array = requant_npy::read(file).map_err(|error| usage(error.to_string()))?;
    // NumPy's default, which is hardly ever what was meant for a model.
    if array.element == ElementType::Float64 {
        return Err(usage(
            "the array holds float64; save array.astype(numpy.float32)".to_owned(),
        ));
    }
    Tensor::from_npy(name, array).map_err(|error| usage(error.to_string()))
}

fn write_output(
    response: &InferResponse,
    NamedFile { name, file }: &NamedFile,
) -> Result<String, Failure> {
    let tensor = response
        .output(name)
        .ok_or_else(|| Failure::Server(format!("the server's answer lacks the output {name:?}")))?;
    let usage = |cause: String| Failure::Usage(format!("{}: {cause}", file.display()));
    let array = tensor
        .to_npy()
        .ok_or_else(|| usage(format!("a .npy file cannot hold {}", tensor.datatype)))?;
    requant_npy::write(file, &array).map_err(|error| usage(error.to_string()))?;
    Ok(format!("{}: {}\n", print::heading(tensor), file.display()))
}

/// Adds to a refusal what the model's description says about the inputs.
async fn explain(client: &Client, infer: &Infer, inputs: &[Tensor], error: Error) -> Failure {
    let text = error.to_string();
    if error.code() == Some(Code::InvalidArgument)
        && let Ok(metadata) = client.model_metadata(&infer.model, &infer.version).await
        && let Some(hint) = inputs
            .iter()
            .find_map(|tensor| hint(tensor, &metadata, &text))
    {
        return Failure::Server(format!("{text} (hint: {hint})"));
    }
    error.into()
}

/// What to do about a tensor that was refused with the words `refusal`.
fn hint(tensor: &Tensor, metadata: &ModelMetadataResponse, refusal: &str) -> Option<String> {
    let Tensor {
        name,
        datatype,
        shape,
        ..
    } = tensor;
    let Some(wanted) = metadata.inputs.iter().find(|input| input.name == *name) else {
        let names: Vec<_> = metadata
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .collect();
        let told = names.iter().all(|name| refusal.contains(name));
        return (!told).then(|| format!("the model's inputs are {names:?}"));
    };
    if lacks_batch(shape, wanted) {
        return Some(format!(
            "the file for {name:?} has shape {shape:?} without the batch dimension; \
             save array[None] to send a batch of one"
        ));
    }
    if !fits(shape, &wanted.shape) {
        let wanted = &wanted.shape;
        return Some(format!(
            "the file for {name:?} has shape {shape:?}, the model takes {wanted:?} (-1 is free)"
        ));
    }
    let dtype = numpy_name(wanted.datatype.parse().ok()?)?;
    (datatype.name() != wanted.datatype).then(|| {
        format!(
            "the file for {name:?} holds {datatype}, the model takes {}; \
             save array.astype(numpy.{dtype})",
            wanted.datatype
        )
    })
}

fn lacks_batch(shape: &[i64], wanted: &TensorMetadata) -> bool {
    matches!(wanted.shape.split_first(), Some((-1, sample)) if fits(shape, sample))
}

fn fits(shape: &[i64], wanted: &[i64]) -> bool {
    shape.len() == wanted.len()
        && shape
            .iter()
            .zip(wanted)
            .all(|(extent, wanted)| *wanted == -1 || extent == wanted)
}

fn numpy_name(datatype: Datatype) -> Option<&'static str> {
    match datatype {
        Datatype::Bool => Some("bool_"),
        Datatype::Uint8 => Some("uint8"),
        Datatype::Uint16 => Some("uint16"),
        Datatype::Uint32 => Some("uint32"),
        Datatype::Uint64 => Some("uint64"),
        Datatype::Int8 => Some("int8"),
        Datatype::Int16 => Some("int16"),
        Datatype::Int32 => Some("int32"),
        Datatype::Int64 => Some("int64"),
        Datatype::Fp16 => Some("float16"),
        Datatype::Fp32 => Some("float32"),
        Datatype::Fp64 => Some("float64"),
        Datatype::Bf16 | Datatype::Bytes => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint_for(datatype: Datatype, shape: &[i64]) -> Option<String> {
        let input = |name: &str, shape: &[i64]| TensorMetadata {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
        };
        let metadata = ModelMetadataResponse {
            inputs: vec![input("image", &[-1, 1, 28, 28])],
            ..Default::default()
        };
        let size = datatype.size().unwrap() as i64 * shape.iter().product::<i64>();
        let data = vec![0; usize::try_from(size).unwrap()];
        hint(
            &Tensor::new("image", datatype, shape, data).unwrap(),
            &metadata,
            "",
        )
    }

    #[test]
    fn hints_say_how_the_array_should_look() {
        assert_eq!(
            hint_for(Datatype::Fp32, &[1, 28, 28]).unwrap(),
            "the file for \"image\" has shape [1, 28, 28] without the batch dimension; \
             save array[None] to send a batch of one"
        );
        assert_eq!(
            hint_for(Datatype::Fp32, &[28, 28]).unwrap(),
            "the file for \"image\" has shape [28, 28], the model takes [-1, 1, 28, 28] \
             (-1 is free)"
        );
        assert_eq!(
            hint_for(Datatype::Int64, &[1, 1, 28, 28]).unwrap(),
            "the file for \"image\" holds INT64, the model takes FP32; \
             save array.astype(numpy.float32)"
        );
        assert_eq!(hint_for(Datatype::Fp32, &[2, 1, 28, 28]), None);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let input = TensorMetadata {
            name: "image".to_owned(),
            ..Default::default()
        };
        let metadata = ModelMetadataResponse {
            inputs: vec![input],
            ..Default::default()
        };
        let tensor = Tensor::from_slice("x", &[1], &[0.0f32]).unwrap();
        let hint = |refusal| hint(&tensor, &metadata, refusal);
        assert_eq!(
            hint("unexpected input 'x'").unwrap(),
            "the model's inputs are [\"image\"]"
        );
        assert_eq!(hint("unexpected input 'x', not 'image'"), None);
    }
}
