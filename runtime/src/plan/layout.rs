//! Where every buffer lies in the arena, decided once.
//!
//! Buffers are placed largest first, each in the smallest gap that is free over its whole lifetime
//! (first write to last read), as XNNPACK's and TFLite Micro's planners do. Sizes are rounded to cache
//! lines. Batched buffers are laid out for one sample, and all offsets grow with the batch: buffers
//! that are apart for one sample stay apart for any number.

use super::build::Draft;
use super::{Buffer, BufferId, Storage, root};

/// Alignment of every buffer, in bytes.
pub const ALIGNMENT: usize = 64;

/// Offsets of all buffers: `fixed + per sample × batch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArenaLayout {
    places: Vec<Place>,
    fixed_bytes: usize,
    sample_bytes: usize,
}

/// Where one buffer lies. Buffers outside the arena have an empty place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    offset: usize,
    bytes: usize,
    batched: bool,
    first: usize,
    last: usize,
}

impl ArenaLayout {
    /// Bytes of an arena for `samples` samples.
    pub fn bytes(&self, samples: usize) -> usize {
        self.fixed_bytes
            .saturating_add(self.sample_bytes.saturating_mul(samples))
    }

    /// Bytes that one more sample takes.
    pub fn sample_bytes(&self) -> usize {
        self.sample_bytes
    }

    /// Whether a buffer lies in the arena.
    pub fn holds(&self, id: BufferId) -> bool {
        self.places[id.0].bytes > 0
    }

    /// The same buffers each in a place of its own, with at least `guard` bytes before and behind it that
    /// no buffer has.
    pub(crate) fn apart(&self, guard: usize) -> ArenaLayout {
        let mut places = self.places.clone();
        // Batched buffers begin where fixed ones end, and their gaps grow with the batch.
        let mut ends = [round_up(guard); 2];
        for place in places.iter_mut().filter(|place| place.bytes > 0) {
            let end = &mut ends[usize::from(place.batched)];
            place.offset = *end;
            *end += round_up(place.bytes + guard);
        }
        ArenaLayout {
            places,
            fixed_bytes: ends[0],
            sample_bytes: ends[1],
        }
    }

    /// The byte range of a buffer that holds `samples` samples, in an arena laid out for `batch`.
    pub fn range(&self, id: BufferId, samples: usize, batch: usize) -> core::ops::Range<usize> {
        let place = self.places[id.0];
        if place.batched {
            let start = self.fixed_bytes + place.offset * batch;
            start..start + place.bytes * samples
        } else {
            place.offset..place.offset + place.bytes
        }
    }
}

/// Places every buffer of a plan. Step numbers start at 1; inputs are there from 0, outputs until
/// after the last step.
pub(super) fn lay_out(draft: &Draft) -> ArenaLayout {
    let end = draft.steps.len() + 1;
    let inputs = draft.inputs.iter().map(|port| (port.buffer, 0));
    let steps = draft.steps.iter().enumerate();
    let steps = steps.flat_map(|(index, step)| step.touches().map(move |id| (id, index + 1)));
    let outputs = draft.outputs.iter().map(|port| (port.buffer, end));
    arrange(&draft.buffers, inputs.chain(steps).chain(outputs))
}

/// Places the buffers of the arena that are touched, given each touch as a buffer and a time; a buffer
/// lives from its first touch to its last, and views count as what they show.
pub(crate) fn arrange(
    buffers: &[Buffer],
    touches: impl Iterator<Item = (BufferId, usize)>,
) -> ArenaLayout {
    let mut places = lifetimes(buffers, touches);
    let (mut fixed_bytes, mut sample_bytes) = (0, 0);
    let mut order: Vec<usize> = (0..places.len()).filter(|&i| places[i].bytes > 0).collect();
    order.sort_by_key(|&i| (core::cmp::Reverse(places[i].bytes), places[i].first, i));
    // What is placed so far, by offset: fixed buffers and batched ones.
    let mut placed: [Vec<Place>; 2] = [Vec::new(), Vec::new()];
    for index in order {
        let place = &mut places[index];
        let others = &mut placed[usize::from(place.batched)];
        let busy = others
            .iter()
            .filter(|other| other.first <= place.last && place.first <= other.last)
            .map(|other| (other.offset, other.offset + round_up(other.bytes)));
        let offset = smallest_gap(busy, round_up(place.bytes));
        place.offset = offset;
        let at = others.partition_point(|other| other.offset <= offset);
        others.insert(at, *place);
        let end = if place.batched {
            &mut sample_bytes
        } else {
            &mut fixed_bytes
        };
        *end = (*end).max(offset + round_up(place.bytes));
    }
    ArenaLayout {
        places,
        fixed_bytes,
        sample_bytes,
    }
}

fn lifetimes(buffers: &[Buffer], touches: impl Iterator<Item = (BufferId, usize)>) -> Vec<Place> {
    let nowhere = Place {
        first: usize::MAX,
        ..Place::default()
    };
    let mut places = vec![nowhere; buffers.len()];
    for (id, at) in touches {
        let id = root(buffers, id);
        let buffer = &buffers[id.0];
        if buffer.storage != Storage::Arena {
            continue;
        }
        let place = &mut places[id.0];
        place.bytes = buffer.bytes();
        place.batched = buffer.batched;
        place.first = place.first.min(at);
        place.last = place.last.max(at);
    }
    places
}

/// The start of the smallest gap between busy ranges (sorted by start) that holds `bytes`, or the end
/// of the last.
fn smallest_gap(busy: impl IntoIterator<Item = (usize, usize)>, bytes: usize) -> usize {
    let mut end = 0;
    let mut best: Option<(usize, usize)> = None;
    for (start, stop) in busy {
        if start >= end + bytes && best.is_none_or(|(gap, _)| start - end < gap) {
            best = Some((start - end, end));
        }
        end = end.max(stop);
    }
    best.map_or(end, |(_, offset)| offset)
}

fn round_up(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_apart_have_guards() {
        let buffer = |elements: usize, batched: bool| Buffer {
            name: String::new(),
            dtype: requant_numerics::DType::U8,
            dims: vec![elements],
            batched,
            storage: Storage::Arena,
        };
        let buffers = [
            buffer(70, true),
            buffer(1, false),
            buffer(64, true),
            buffer(300, false),
        ];
        let touches = (0..4).map(|index| (BufferId(index), index));
        let layout = arrange(&buffers, touches).apart(100);
        for (samples, batch) in [(1, 1), (2, 5)] {
            let mut ranges: Vec<_> = (0..4)
                .map(|i| layout.range(BufferId(i), samples, batch))
                .collect();
            ranges.sort_by_key(|range| range.start);
            let lengths: Vec<usize> = ranges.iter().map(|range| range.len()).collect();
            assert_eq!(lengths, [1, 300, 70 * samples, 64 * samples]);
            let mut end = 0;
            for range in ranges {
                assert!(range.start >= end + 100 && range.start % ALIGNMENT == 0);
                end = range.end;
            }
            assert!(layout.bytes(batch) >= end + 100);
        }
    }

    #[test]
    fn smallest_gap_is_taken() {
        assert_eq!(smallest_gap([], 64), 0);
        assert_eq!(smallest_gap([(0, 64), (256, 320), (448, 512)], 64), 320);
        assert_eq!(smallest_gap([(64, 128)], 64), 0);
        assert_eq!(smallest_gap([(0, 128), (64, 256)], 64), 256);
    }
}
