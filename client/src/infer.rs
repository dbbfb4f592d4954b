//! One inference as values: what is asked, what is answered, and the way both become protocol
//! messages. Responses are checked here, so that a tensor handed out always fills its shape.

use std::{collections::BTreeMap, time::Duration};

use requant_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
    model_infer_request as request, model_infer_response as response,
};

use crate::{Datatype, DecodeError, Tensor, TensorError, contents};

/// A parameter of a request, a response or a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Int64(i64),
    /// An unsigned integer.
    Uint64(u64),
    /// A real number.
    Double(f64),
    /// A text.
    String(String),
}

/// What to infer. The methods add to it and give it back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InferRequest {
    /// Name of the model.
    pub model: String,
    /// Version as a decimal number; empty lets the server choose.
    pub version: String,
    /// Free text that the response repeats.
    pub id: String,
    /// Parameters of the request.
    pub parameters: BTreeMap<String, Parameter>,
    /// The inputs.
    pub inputs: Vec<Tensor>,
    /// The wanted outputs with their parameters; none means all.
    pub outputs: Vec<(String, BTreeMap<String, Parameter>)>,
    /// Send typed lists instead of raw bytes.
    pub typed: bool,
    /// Time for this call, retries included, instead of the client's.
    pub timeout: Option<Duration>,
}

impl InferRequest {
    /// A request without inputs to the version that the server chooses.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            ..Self::default()
        }
    }

    /// Asks for one version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Sets the text that the response repeats.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Adds a parameter.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: Parameter) -> Self {
        self.parameters.insert(name.into(), value);
        self
    }

    /// Adds an input.
    #[must_use]
    pub fn input(mut self, tensor: Tensor) -> Self {
        self.inputs.push(tensor);
        self
    }

    /// Asks for an output; outputs that nobody asks for are then left out.
    #[must_use]
    pub fn output(self, name: impl Into<String>) -> Self {
        self.output_with(name, BTreeMap::new())
    }

    /// Asks for an output with parameters, such as `quantized` or `classification`.
    #[must_use]
    pub fn output_with(
        mut self,
        name: impl Into<String>,
        parameters: BTreeMap<String, Parameter>,
    ) -> Self {
        self.outputs.push((name.into(), parameters));
        self
    }

    /// Sends typed lists instead of raw bytes.
    #[must_use]
    pub const fn typed(mut self) -> Self {
        self.typed = true;
        self
    }

    /// Limits this call, retries included.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn into_message(self) -> Result<ModelInferRequest, TensorError> {
        let mut message = ModelInferRequest {
            model_name: self.model,
            model_version: self.version,
            id: self.id,
            parameters: to_wire(self.parameters),
            ..ModelInferRequest::default()
        };
        for tensor in self.inputs {
            let contents = self.typed.then(|| contents::encode(&tensor)).transpose()?;
            message.inputs.push(request::InferInputTensor {
                name: tensor.name,
                datatype: tensor.datatype.name().to_owned(),
                shape: tensor.shape,
                parameters: to_wire(tensor.parameters),
                contents,
            });
            if !self.typed {
                message.raw_input_contents.push(tensor.data);
            }
        }
        for (name, parameters) in self.outputs {
            let parameters = to_wire(parameters);
            message
                .outputs
                .push(request::InferRequestedOutputTensor { name, parameters });
        }
        Ok(message)
    }
}

/// What was inferred.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InferResponse {
    /// Name of the model.
    pub model: String,
    /// Version that answered.
    pub version: String,
    /// The request's id.
    pub id: String,
    /// Parameters of the response.
    pub parameters: BTreeMap<String, Parameter>,
    /// The outputs.
    pub outputs: Vec<Tensor>,
}

impl InferResponse {
    /// The output of that name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|tensor| tensor.name == name)
    }

    pub(crate) fn from_message(message: ModelInferResponse) -> Result<Self, DecodeError> {
        let (outputs, raw) = (message.outputs, message.raw_output_contents);
        if !raw.is_empty() && raw.len() != outputs.len() {
            return Err(DecodeError::RawCount {
                outputs: outputs.len(),
                raw: raw.len(),
            });
        }
        let mut raw = raw.into_iter();
        let mut tensors = Vec::with_capacity(outputs.len());
        for output in outputs {
            let response::InferOutputTensor {
                name,
                datatype,
                shape,
                parameters,
                contents,
            } = output;
            let datatype: Datatype = datatype.parse().map_err(|source| DecodeError::Datatype {
                tensor: name.clone(),
                source,
            })?;
            let mut tensor = match raw.next() {
                Some(data) => Tensor::new(name, datatype, &shape, data)?,
                None => contents::decode(name, datatype, &shape, contents.unwrap_or_default())?,
            };
            tensor.parameters = from_wire(parameters);
            tensors.push(tensor);
        }
        Ok(Self {
            model: message.model_name,
            version: message.model_version,
            id: message.id,
            parameters: from_wire(message.parameters),
            outputs: tensors,
        })
    }
}

fn to_wire(parameters: BTreeMap<String, Parameter>) -> BTreeMap<String, InferParameter> {
    let choice = |value| match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int64(value) => ParameterChoice::Int64Param(value),
        Parameter::Uint64(value) => ParameterChoice::Uint64Param(value),
        Parameter::Double(value) => ParameterChoice::DoubleParam(value),
        Parameter::String(value) => ParameterChoice::StringParam(value),
    };
    parameters
        .into_iter()
        .map(|(name, value)| {
            (
                name,
                InferParameter {
                    parameter_choice: Some(choice(value)),
                },
            )
        })
        .collect()
}

/// Parameters of kinds that later protocols may add are left out.
fn from_wire(parameters: BTreeMap<String, InferParameter>) -> BTreeMap<String, Parameter> {
    let value = |choice| match choice {
        ParameterChoice::BoolParam(value) => Parameter::Bool(value),
        ParameterChoice::Int64Param(value) => Parameter::Int64(value),
        ParameterChoice::Uint64Param(value) => Parameter::Uint64(value),
        ParameterChoice::DoubleParam(value) => Parameter::Double(value),
        ParameterChoice::StringParam(value) => Parameter::String(value),
    };
    parameters
        .into_iter()
        .filter_map(|(name, parameter)| Some((name, value(parameter.parameter_choice?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, datatype: &str, shape: &[i64]) -> response::InferOutputTensor {
        response::InferOutputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn raw_and_typed_requests_carry_the_contents_once() {
        let tensor = Tensor::from_slice("x", &[1, 2], &[1i8, -1]).unwrap();
        let request = InferRequest::new("m").version("3").id("7").input(tensor);

        let raw = request.clone().into_message().unwrap();
        assert_eq!(raw.raw_input_contents, [&[1u8, 255][..]]);
        assert_eq!(raw.inputs[0].contents, None);
        assert_eq!((raw.model_version.as_str(), raw.id.as_str()), ("3", "7"));

        let typed = request.typed().into_message().unwrap();
        assert!(typed.raw_input_contents.is_empty());
        assert_eq!(
            typed.inputs[0].contents.as_ref().unwrap().int_contents,
            [1, -1]
        );
        assert_eq!(typed.inputs[0].datatype, "INT8");
    }

    #[test]
    fn parameters_round_trip() {
        let parameters: BTreeMap<String, Parameter> = [
            ("a".to_owned(), Parameter::Bool(true)),
            ("b".to_owned(), Parameter::Int64(-1)),
            ("c".to_owned(), Parameter::Uint64(u64::MAX)),
            ("d".to_owned(), Parameter::Double(0.5)),
            ("e".to_owned(), Parameter::String("x".to_owned())),
        ]
        .into();
        assert_eq!(from_wire(to_wire(parameters.clone())), parameters);
    }

    #[test]
    fn malformed_responses_are_errors() {
        let raw = |data: &[&'static [u8]]| data.iter().map(|&d| d.into()).collect();
        let cases = [
            (
                vec![output("y", "FP8", &[1])],
                raw(&[b"a"]),
                "output \"y\": \"FP8\" is not a datatype of the protocol",
            ),
            (
                vec![output("y", "UINT8", &[1]), output("z", "UINT8", &[1])],
                raw(&[b"a"]),
                "2 outputs, but 1 raw contents",
            ),
            (
                vec![output("y", "FP32", &[2])],
                raw(&[b"abcd"]),
                "tensor \"y\": FP32 with shape [2] takes 8 bytes, got 4",
            ),
            (
                vec![output("y", "FP32", &[2])],
                raw(&[]),
                "tensor \"y\": FP32 with shape [2] takes 8 bytes, got 0",
            ),
            (
                vec![output("y", "UINT8", &[-1])],
                raw(&[b""]),
                "tensor \"y\": shape [-1] has a negative dimension",
            ),
        ];
        for (outputs, raw_output_contents, message) in cases {
            let response = ModelInferResponse {
                outputs,
                raw_output_contents,
                ..Default::default()
            };
            let error = InferResponse::from_message(response).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
