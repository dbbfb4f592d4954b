//! Borders that a window can have itself: a Pad before a convolution or a pool goes into its padding where
//! that gives the same.

use requant_model::limits::MAX_WINDOW;
use requant_model::ops::Window;

use crate::float::graph::{Clamp, Graph, Node, Op, ValueId};

/// Joins pads to the windows that read them.
pub(super) fn run(graph: &mut Graph) {
    let mut producers: Vec<Option<usize>> = vec![None; graph.values.len()];
    for index in 0..graph.nodes.len() {
        if let Some((input, pads)) = inner(graph, &producers, &graph.nodes[index]) {
            let node = &mut graph.nodes[index];
            node.inputs[0] = input;
            if let Op::AveragePool(pool) = &mut node.op {
                pool.include_pad = true;
            }
            if let Some(window) = window_mut(&mut node.op) {
                window.pads = pads;
            }
        }
        producers[graph.nodes[index].output.0] = Some(index);
    }
}

/// What lies before the pad that a node reads, and the padding of the node's window with it.
fn inner(graph: &Graph, producers: &[Option<usize>], node: &Node) -> Option<(ValueId, [usize; 4])> {
    let made = |value: ValueId| producers[value.0].map(|index| &graph.nodes[index]);
    let pad = made(*node.inputs.first()?)?;
    let Op::Pad {
        before,
        after,
        value,
    } = &pad.op
    else {
        return None;
    };
    let source = pad.inputs[0];
    let lowest = made(source).map_or(Clamp::NONE, |node| node.op.clamp()).lo;
    let window = window(&node.op)?;
    let same = if let Op::AveragePool(pool) = &node.op {
        *value == 0.0 && !window.ceil && (pool.include_pad || window.pads == [0; 4])
    } else if matches!(node.op, Op::MaxPool(_)) {
        // Padding never wins; no more does a border that no element is below.
        lowest >= *value
    } else {
        *value == 0.0
    };
    if !same {
        return None;
    }
    let flat = |sides: &[usize]| sides.iter().take(2).all(|&side| side == 0);
    if !flat(before) || !flat(after) {
        return None;
    }
    let sides = match (&before[2..], &after[2..]) {
        ([left], [right]) => [0, *left, 0, *right],
        ([top, left], [bottom, right]) => [*top, *left, *bottom, *right],
        (_, _) => return None,
    };
    let mut pads = window.pads;
    for (pad, side) in pads.iter_mut().zip(sides) {
        *pad += side;
    }
    let fits = |axis: usize| {
        // Every window of a pool holds an element that is no padding.
        let span = (window.kernel[axis] - 1) * window.dilations[axis] + 1;
        let pools = !matches!(node.op, Op::Conv(_));
        let inside = window.dilations[axis] == 1 && pads[axis].max(pads[axis + 2]) < span;
        pads[axis].max(pads[axis + 2]) <= MAX_WINDOW && (!pools || inside)
    };
    (fits(0) && fits(1)).then_some((source, pads))
}

/// The window of an operator that may hold a border.
fn window_mut(op: &mut Op) -> Option<&mut Window> {
    if let Op::Conv(conv) = op {
        return Some(&mut conv.window);
    }
    if let Op::AveragePool(pool) = op {
        return Some(&mut pool.window);
    }
    if let Op::MaxPool(window) = op {
        return Some(window);
    }
    None
}

/// See [`window_mut`].
fn window(op: &Op) -> Option<&Window> {
    if let Op::Conv(conv) = op {
        return Some(&conv.window);
    }
    if let Op::AveragePool(pool) = op {
        return Some(&pool.window);
    }
    if let Op::MaxPool(window) = op {
        return Some(window);
    }
    None
}
