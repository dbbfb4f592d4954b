//! How many parts a file has, counted over its bytes before anything is decoded: an empty node takes two
//! bytes of a file and a hundred and fifty of memory, so a small file could ask for a lot.
//!
//! Only repeated fields are counted, and all of a kind together, wherever they stand: the fields that
//! hold one value cannot be multiplied. Fields that `proto/onnx.proto` leaves out are skipped, as the
//! decoder skips them.

use requant_model::limits;

use super::error::ImportError;
use crate::wire::{Content, WireFault, fields, packed_varints};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Opsets,
    Nodes,
    Tensors,
    SparseTensors,
    Inputs,
    Outputs,
    NodeOperands,
    Attributes,
    ListEntries,
    AttributeTexts,
    TensorDims,
    PortDims,
    WideEntries,
    NarrowEntries,
    ExternalEntries,
}

/// Each part with its name and the most of it that a file may have.
///
/// What they may take together is some hundred megabytes; elements of tensors that are stored one an
/// entry are not more of them than a file of that kind needs.
const LIMITS: [(Part, &str, usize); 15] = [
    (Part::Opsets, "operator sets", 1 << 10),
    (Part::Nodes, "nodes", limits::MAX_NODES),
    (Part::Tensors, "tensors", 1 << 17),
    (Part::SparseTensors, "sparse tensors", 1 << 10),
    (Part::Inputs, "inputs", 1 << 17),
    (Part::Outputs, "outputs", limits::MAX_PORTS),
    (Part::NodeOperands, "operands and results of nodes", 1 << 18),
    (Part::Attributes, "attributes", 1 << 17),
    (Part::ListEntries, "numbers in attributes", 1 << 22),
    (Part::AttributeTexts, "texts in attributes", 1 << 17),
    (Part::TensorDims, "dimensions of tensors", 1 << 20),
    (Part::PortDims, "dimensions of inputs and outputs", 1 << 19),
    (
        Part::WideEntries,
        "64-bit integers of tensors that are not raw data",
        1 << 22,
    ),
    (
        Part::NarrowEntries,
        "32-bit integers of tensors that are not raw data",
        1 << 28,
    ),
    (Part::ExternalEntries, "entries of external data", 1 << 19),
];

/// A message of the schema.
#[derive(Clone, Copy, Debug)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Port,
    PortType,
    TensorType,
    Shape,
}

/// What a field of a message is.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// One message.
    One(Message),
    /// A message, text or other value, any number of times.
    Many(Part, Option<Message>),
    /// Varints, one a field or packed.
    Varints(Part),
    /// Numbers of four bytes, one a field or packed.
    Words(Part),
}

/// What a field is; `None` where it is skipped, or holds one value that is not a message.
fn field(message: Message, number: u32) -> Option<Field> {
    Some(match (message, number) {
        (Message::Model, 7) => Field::One(Message::Graph),
        (Message::Model, 8) => Field::Many(Part::Opsets, None),
        (Message::Graph, 1) => Field::Many(Part::Nodes, Some(Message::Node)),
        (Message::Graph, 5) => Field::Many(Part::Tensors, Some(Message::Tensor)),
        (Message::Graph, 11) => Field::Many(Part::Inputs, Some(Message::Port)),
        (Message::Graph, 12) => Field::Many(Part::Outputs, Some(Message::Port)),
        (Message::Graph, 15) => Field::Many(Part::SparseTensors, Some(Message::Sparse)),
        (Message::Node, 1 | 2) => Field::Many(Part::NodeOperands, None),
        (Message::Node, 5) => Field::Many(Part::Attributes, Some(Message::Attribute)),
        (Message::Attribute, 5) => Field::One(Message::Tensor),
        (Message::Attribute, 7) => Field::Words(Part::ListEntries),
        (Message::Attribute, 8) => Field::Varints(Part::ListEntries),
        (Message::Attribute, 9) => Field::Many(Part::AttributeTexts, None),
        (Message::Tensor, 1) => Field::Varints(Part::TensorDims),
        (Message::Tensor, 5) => Field::Varints(Part::NarrowEntries),
        (Message::Tensor, 7 | 11) => Field::Varints(Part::WideEntries),
        (Message::Tensor, 13) => Field::Many(Part::ExternalEntries, None),
        (Message::Sparse, 1) => Field::One(Message::Tensor),
        (Message::Port, 2) => Field::One(Message::PortType),
        (Message::PortType, 1) => Field::One(Message::TensorType),
        (Message::TensorType, 2) => Field::One(Message::Shape),
        (Message::Shape, 1) => Field::Many(Part::PortDims, None),
        (_, _) => return None,
    })
}

/// Counts the parts of a file and refuses what has too many.
///
/// # Errors
/// [`ImportError::Wire`] where the bytes are not protobuf, and [`ImportError::TooMany`].
pub(crate) fn check(bytes: &[u8]) -> Result<(), ImportError> {
    let mut counts = [0usize; LIMITS.len()];
    count(Message::Model, bytes, &mut counts)?;
    for ((_, what, limit), count) in LIMITS.into_iter().zip(counts) {
        if count > limit {
            return Err(ImportError::TooMany { what, count, limit });
        }
    }
    Ok(())
}

/// Adds the parts of a message. The schema does not contain itself, so this goes no deeper than it.
fn count(
    message: Message,
    bytes: &[u8],
    counts: &mut [usize; LIMITS.len()],
) -> Result<(), WireFault> {
    for entry in fields(bytes) {
        let (number, content) = entry?;
        let Some(field) = field(message, number) else {
            continue;
        };
        let mut add = |part: Part, many: usize| counts[part as usize] += many;
        match (field, content) {
            (Field::One(inner), Content::Bytes(bytes)) => count(inner, bytes, counts)?,
            (Field::Many(part, inner), Content::Bytes(bytes)) => {
                add(part, 1);
                if let Some(inner) = inner {
                    count(inner, bytes, counts)?;
                }
            }
            (Field::Varints(part), Content::Bytes(bytes)) => add(part, packed_varints(bytes)),
            (Field::Words(part), Content::Bytes(bytes)) => add(part, bytes.len() / 4),
            (Field::Varints(part) | Field::Words(part), Content::Scalar) => add(part, 1),
            // The decoder refuses a value where a message stands.
            (Field::One(_) | Field::Many(..), Content::Scalar) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes; numbers below 16 only.
    fn wrap(number: u8, contents: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = contents.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(contents);
        out
    }

    fn too_many(bytes: &[u8]) -> (&'static str, usize) {
        match check(bytes) {
            Err(ImportError::TooMany { what, count, .. }) => (what, count),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_are_listed_in_the_order_of_their_counts() {
        for (index, (part, ..)) in LIMITS.into_iter().enumerate() {
            assert_eq!(part as usize, index);
        }
    }

    #[test]
    fn every_kind_has_its_limit() {
        let graph = |contents: &[u8]| wrap(7, contents);
        let node = |contents: &[u8]| graph(&wrap(1, contents));
        let attribute = |contents: &[u8]| node(&wrap(5, contents));
        let tensor = |contents: &[u8]| graph(&wrap(5, contents));
        let shape = |contents: &[u8]| graph(&wrap(11, &wrap(2, &wrap(1, &wrap(2, contents)))));
        // What is repeated, and what stands around it.
        type Around<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
        let table: [(&str, Vec<u8>, usize, Around<'_>); 19] = [
            ("operator sets", wrap(8, &[]), 1, &|b| b.to_vec()),
            ("nodes", wrap(1, &[]), 1, &graph),
            ("tensors", wrap(5, &[]), 1, &graph),
            ("sparse tensors", wrap(15, &[]), 1, &graph),
            ("inputs", wrap(11, &[]), 1, &graph),
            ("outputs", wrap(12, &[]), 1, &graph),
            ("operands and results of nodes", wrap(1, &[]), 1, &node),
            ("operands and results of nodes", wrap(2, &[]), 1, &node),
            ("attributes", wrap(5, &[]), 1, &node),
            ("numbers in attributes", wrap(8, &[1; 100]), 100, &attribute),
            ("numbers in attributes", vec![0x40, 1], 1, &attribute),
            ("numbers in attributes", wrap(7, &[0; 80]), 20, &attribute),
            ("texts in attributes", wrap(9, &[]), 1, &attribute),
            ("dimensions of tensors", vec![0x08, 1], 1, &tensor),
            ("dimensions of tensors", wrap(1, &[1; 100]), 100, &tensor),
            ("dimensions of tensors", wrap(1, &[0x81, 0]), 1, &|b| {
                attribute(&wrap(5, b))
            }),
            ("dimensions of inputs and outputs", wrap(1, &[]), 1, &shape),
            (
                "64-bit integers of tensors that are not raw data",
                wrap(7, &[1; 100]),
                100,
                &tensor,
            ),
            ("entries of external data", wrap(13, &[]), 1, &tensor),
        ];
        for (what, one, each, around) in table {
            let limit = LIMITS.iter().find(|entry| entry.1 == what).unwrap().2;
            let most = limit / each;
            assert!(check(&around(&one.repeat(most))).is_ok(), "{what}");
            let over = around(&one.repeat(most + 1));
            assert_eq!(too_many(&over), (what, (most + 1) * each));
        }
        // Spread over several messages they count together.
        let half = graph(&wrap(1, &[]).repeat(limits::MAX_NODES / 2 + 1));
        assert_eq!(too_many(&half.repeat(2)), ("nodes", limits::MAX_NODES + 2));
    }
}
