//! A codec that bounds how many things a message may hold before it is decoded. An empty tensor takes
//! two bytes on the wire and some 300 in memory, so a bound on bytes alone would let a small request
//! ask for gigabytes.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Most tensors, parameters, strings and buffers that one message may hold together.
pub const MAX_ITEMS: usize = 1 << 16;

/// prost's encoding, with [`MAX_ITEMS`] checked before a message is decoded.
#[derive(Clone, Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        BoundedCodec(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Clone, Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The transport hands over a whole message in one piece.
        if buffer.chunk().len() == buffer.remaining() {
            let mut left = MAX_ITEMS;
            if !count(buffer.chunk(), nested(U::NAME), &mut left) {
                return Err(Status::invalid_argument(format!(
                    "{} holds more than {MAX_ITEMS} tensors, parameters and strings, or a group",
                    U::NAME
                )));
            }
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Fields of a message that hold things to count too.
#[derive(Debug)]
struct Nested {
    field: u64,
    inside: &'static [Nested],
}

/// Where a message's repeated fields lie below its top level.
fn nested(message: &str) -> &'static [Nested] {
    const fn leaf(field: u64) -> Nested {
        Nested { field, inside: &[] }
    }
    // Inputs with their parameters, contents and strings; outputs with their parameters.
    const REQUEST: &[Nested] = &[
        Nested {
            field: 5,
            inside: &[leaf(5)],
        },
        leaf(6),
    ];
    match message {
        "ModelInferRequest" => REQUEST,
        _ => &[],
    }
}

/// Takes what a message holds from `left`; false when there is more, or what cannot be counted. What is malformed is left to the
/// decoder, which explains it.
fn count(mut bytes: &[u8], nested: &[Nested], left: &mut usize) -> bool {
    while !bytes.is_empty() {
        let Some(tag) = varint(&mut bytes) else {
            return true;
        };
        let skip = match tag & 7 {
            0 => match varint(&mut bytes) {
                Some(_) => 0,
                None => return true,
            },
            1 => 8,
            5 => 4,
            2 => {
                let Some(length) = varint(&mut bytes) else {
                    return true;
                };
                let Ok(length) = usize::try_from(length) else {
                    return true;
                };
                let Some(content) = bytes.get(..length) else {
                    return true;
                };
                let Some(fewer) = left.checked_sub(1) else {
                    return false;
                };
                *left = fewer;
                if let Some(deeper) = nested.iter().find(|nested| nested.field == tag >> 3)
                    && !count(content, deeper.inside, left)
                {
                    return false;
                }
                length
            }
            // Groups are in no message of this protocol. The decoder would skip one and go on to what
            // follows, which must not stay uncounted.
            3 => return false,
            _ => return true,
        };
        match bytes.get(skip..) {
            Some(rest) => bytes = rest,
            None => return true,
        }
    }
    true
}

/// Reads a base-128 number from the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for index in 0..10 {
        let byte = *bytes.get(index)?;
        value |= u64::from(byte & 127) << (7 * index);
        if byte < 128 {
            *bytes = &bytes[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{ModelInferRequest, model_infer_request::InferInputTensor};

    fn fits(message: &str, bytes: &[u8]) -> bool {
        count(bytes, nested(message), &mut MAX_ITEMS.clone())
    }

    #[test]
    fn what_takes_two_bytes_is_counted_at_every_level() {
        let request = ModelInferRequest::NAME;
        // Inputs, outputs, raw contents, parameters.
        for tag in [0x2a, 0x32, 0x3a, 0x22] {
            assert!(fits(request, &[tag, 0].repeat(MAX_ITEMS)));
            assert!(!fits(request, &[tag, 0].repeat(MAX_ITEMS + 1)));
        }
        // Strings in the contents of an input; unpacked numbers there are not counted.
        for (tag, counted) in [(0x42, true), (0x10, false)] {
            let contents = [tag, 0].repeat(MAX_ITEMS);
            let wrap = |tag, inside: &[u8]| {
                let mut out = vec![tag];
                prost::encode_length_delimiter(inside.len(), &mut out).unwrap();
                out.extend(inside);
                out
            };
            assert_eq!(fits(request, &wrap(0x2a, &wrap(0x2a, &contents))), !counted);
        }
    }

    #[test]
    fn a_group_hides_nothing() {
        let mut bytes = vec![0x7b, 0x7c];
        bytes.extend([0x2a, 0].repeat(MAX_ITEMS + 1));
        // The decoder itself skips the group and reads every input.
        let request = ModelInferRequest::decode(&bytes[..]).unwrap();
        assert_eq!(request.inputs.len(), MAX_ITEMS + 1);
        assert!(!fits(ModelInferRequest::NAME, &bytes));
        assert!(!fits(ModelInferRequest::NAME, &[0x2b, 1]));
    }

    #[test]
    fn ordinary_and_malformed_messages_pass_to_the_decoder() {
        let message = ModelInferRequest {
            inputs: vec![InferInputTensor::default(); 100],
            raw_input_contents: vec![vec![0x2a; 1 << 20].into()],
            ..Default::default()
        };
        let bytes = message.encode_to_vec();
        let mut left = MAX_ITEMS;
        assert!(count(&bytes, nested(ModelInferRequest::NAME), &mut left));
        assert_eq!(MAX_ITEMS - left, 101);
        for malformed in [
            &[0xff; 11][..],
            &[0x2a, 0x7f],
            &[0x2a],
            &[0x09, 0],
            &[0x2e, 1],
        ] {
            assert!(fits(ModelInferRequest::NAME, malformed));
        }
    }
}
