//! Where a tile finds its activations.
//!
//! An output pixel of a convolution reads `kernel_h` stretches of an NHWC image, each `kernel_w · C`
//! bytes long. A kernel therefore takes, for each row of its tile, a list of pointers to equally long
//! segments, and most rows need no copy at all. Rows that reach over the border, and all rows where
//! segments are not whole k-groups or must be widened, are first gathered into a strip of scratch, in
//! the same order of K: (ky, kx, c).

use core::ops::Range;

use crate::conv::ConvShape;
use crate::table::{Activations, Kernel};

/// How the rows of one layer are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A segment for each kernel row.
    KernelRows,
    /// A segment for each tap.
    Taps,
    /// One segment; every row is gathered.
    Gathered,
}

/// An activation as a kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// An unsigned byte.
    U8,
    /// A signed byte.
    I8,
    /// A word that a byte was widened to.
    Word,
}

/// The plan by which rows of one layer become pointers.
#[derive(Clone, Debug)]
pub(crate) struct RowPlan {
    shape: ConvShape,
    form: Form,
    widen: bool,
    signed: bool,
    /// Channels of a group.
    channels: usize,
    /// Segments of a row.
    pub(crate) segments: usize,
    /// k-groups of a segment.
    pub(crate) groups: usize,
    /// Positions along K.
    pub(crate) depth: usize,
    /// Positions along K in packed weights and in the strip.
    pub(crate) padded: usize,
    /// Positions along K of a segment that hold weights.
    pub(crate) segment: usize,
    /// Whether row after row is pixel after pixel: a matrix product.
    dense: bool,
    /// Whether rows are pixels with others between them, which a processor does not fetch ahead by itself.
    pub(crate) scattered: bool,
    /// Bytes of a gathered row.
    row_bytes: usize,
    /// Bytes from one image row to the next, and from one image to the next.
    line: usize,
    image: usize,
    /// Where the segments of a row start, from its first tap on; none where every row is gathered.
    offsets: Vec<usize>,
    /// Output columns whose windows do not reach over the image's sides.
    inner: Range<usize>,
}

/// The next output row to be filled in, counted over the batch, and the pixel that it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    row: usize,
    image: usize,
    y: usize,
    x: usize,
}

/// Bytes past the strip that a gather may touch.
const SLACK: usize = 16;

impl RowPlan {
    /// With `spread`, a kernel row whose length is no multiple of the k-group may be read with a few bytes
    /// behind it, so that positions along K lie apart from one kernel row to the next
    /// ([`RowPlan::position`]); their weights are 0.
    pub(crate) fn new(shape: &ConvShape, signed: bool, kernel: &Kernel, spread: bool) -> Self {
        let channels = shape.in_c / shape.groups;
        let [kernel_h, kernel_w] = shape.kernel;
        let depth = kernel_h * kernel_w * channels;
        let widen = match kernel.activations {
            Activations::U8 | Activations::I8 => false,
            Activations::Widened => true,
        };
        let run = kernel_w * channels;
        let contiguous = kernel_w == 1 || (shape.groups == 1 && shape.dilations[1] == 1);
        let (form, segments, segment) = if widen {
            (Form::Gathered, 1, depth)
        } else if contiguous
            && (run.is_multiple_of(kernel.group)
                || spread && {
                    let read = run.next_multiple_of(kernel.group);
                    // Gathering rounds up once; more than a third of excess work costs more than it does.
                    kernel_h == 1 || 3 * read <= 4 * run
                })
        {
            (Form::KernelRows, kernel_h, run)
        } else if channels.is_multiple_of(kernel.group) {
            (Form::Taps, kernel_h * kernel_w, channels)
        } else {
            (Form::Gathered, 1, depth)
        };
        let groups = segment.div_ceil(kernel.group);
        let padded = segments * groups * kernel.group;
        let line = shape.in_w * shape.in_c;
        let taps = match form {
            Form::KernelRows => 1,
            Form::Taps => kernel_w,
            Form::Gathered => 0,
        };
        let [down, right] = [shape.dilations[0] * line, shape.dilations[1] * shape.in_c];
        let offsets = (0..kernel_h).flat_map(|ky| (0..taps).map(move |kx| ky * down + kx * right));
        let reach = (kernel_w - 1) * shape.dilations[1];
        let last = (shape.in_w + shape.pads[1]).checked_sub(reach + 1);
        let end = last.map_or(0, |last| (last / shape.strides[1] + 1).min(shape.out_w));
        let pixels = form == Form::KernelRows && shape.kernel == [1, 1];
        let dense = pixels
            && shape.strides == [1, 1]
            && shape.pads == [0, 0]
            && (shape.in_h, shape.in_w) == (shape.out_h, shape.out_w);
        RowPlan {
            shape: *shape,
            form,
            widen,
            signed,
            channels,
            segments,
            groups,
            depth,
            padded,
            segment,
            dense,
            scattered: pixels && shape.strides[1] > 1,
            row_bytes: padded * kernel.activation_bytes(),
            line,
            image: shape.in_h * line,
            offsets: offsets.collect(),
            inner: shape.pads[1].div_ceil(shape.strides[1])..end,
        }
    }

    /// The output row `row`, counted over the batch.
    pub(crate) fn cursor(&self, row: usize) -> Cursor {
        let ConvShape { out_h, out_w, .. } = self.shape;
        Cursor {
            row,
            image: row / (out_h * out_w),
            y: row / out_w % out_h,
            x: row % out_w,
        }
    }

    /// The position along K, in the order of the weights, that lies at a position of the packed ones; none
    /// where there is padding.
    pub(crate) fn position(&self, packed: usize) -> Option<usize> {
        let (index, within) = (
            packed / (self.padded / self.segments),
            packed % (self.padded / self.segments),
        );
        (within < self.segment).then_some(index * self.segment + within)
    }

    /// Whether row after row is pixel after pixel.
    pub(crate) fn is_dense(&self) -> bool {
        self.dense
    }

    /// What segments consist of.
    pub(crate) fn element(&self) -> Element {
        match (self.widen, self.signed) {
            (true, _) => Element::Word,
            (false, true) => Element::I8,
            (false, false) => Element::U8,
        }
    }

    /// Bytes of a row as the kernel reads it, wherever it lies.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of strip for `rows` rows; none where no row is ever gathered.
    pub(crate) fn strip_bytes(&self, rows: usize) -> usize {
        let whole = self.padded == self.depth;
        if self.form != Form::Gathered && whole && self.shape.stays_inside() {
            0
        } else {
            rows * self.row_bytes + SLACK
        }
    }

    /// Fills `table` with the pointers of a tile's output rows, as many as it has room for, and gathers into
    /// `strip` what must be gathered. The cursor moves on.
    ///
    /// `table` takes `segments × rows` pointers, segment-major; `strip` is the tile's part of the strip,
    /// `strip_bytes(rows)` long or longer. `input` holds all images that the rows reach into. Each pointer
    /// is then readable for `groups` k-groups as long as `input` and `strip` are.
    pub(crate) fn fill(
        &self,
        input: &[u8],
        padding: u8,
        group: usize,
        cursor: &mut Cursor,
        table: &mut [*const u8],
        strip: &mut [u8],
    ) {
        let shape = &self.shape;
        let height = table.len() / self.segments;
        let first_channel = group * self.channels;
        if self.dense {
            let start = cursor.row * shape.in_c + first_channel;
            if height > 0 && start + (height - 1) * shape.in_c + self.padded <= input.len() {
                point(&input[start..], shape.in_c, table);
                cursor.row += height;
                return;
            }
            *cursor = self.cursor(cursor.row);
        }
        let mut r = 0;
        while r < height {
            let base = cursor.image * self.image + first_channel;
            let done = match self.stretch(input, base, cursor, height - r) {
                Some((start, pixels)) => {
                    let step = shape.strides[1] * shape.in_c;
                    for (offset, table) in self.offsets.iter().zip(table.chunks_mut(height)) {
                        point(&input[start + offset..], step, &mut table[r..r + pixels]);
                    }
                    pixels
                }
                None => {
                    let at = r * self.row_bytes;
                    self.copy(&input[base..], cursor, padding, &mut strip[at..]);
                    let segment = self.row_bytes / self.segments;
                    for s in 0..self.segments {
                        table[s * height + r] = strip[at + s * segment..].as_ptr();
                    }
                    1
                }
            };
            r += done;
            cursor.row += done;
            cursor.x += done;
            if cursor.x == shape.out_w {
                (cursor.x, cursor.y) = (0, cursor.y + 1);
                if cursor.y == shape.out_h {
                    (cursor.y, cursor.image) = (0, cursor.image + 1);
                }
            }
        }
    }

    /// Pixels from the cursor on, of one output row and at most `most`, that are read where they lie: where
    /// the first tap of the first is, and how many they are.
    fn stretch(
        &self,
        input: &[u8],
        base: usize,
        cursor: &Cursor,
        most: usize,
    ) -> Option<(usize, usize)> {
        let shape = &self.shape;
        let y = (cursor.y * shape.strides[0]).checked_sub(shape.pads[0])?;
        let down = (shape.kernel[0] - 1) * shape.dilations[0];
        let last = self.offsets.last()?;
        if y + down >= shape.in_h || !self.inner.contains(&cursor.x) {
            return None;
        }
        let x = cursor.x * shape.strides[1] - shape.pads[1];
        let start = base + y * self.line + x * shape.in_c;
        // Segments may be read past their end, and so past the input's.
        let room = input
            .len()
            .checked_sub(start + last + self.padded / self.segments)?;
        let step = shape.strides[1] * shape.in_c;
        let mut pixels = (self.inner.end - cursor.x).min(most);
        if (pixels - 1) * step > room {
            pixels = room / step + 1;
        }
        Some((start, pixels))
    }

    /// Gathers the row of the cursor to the start of `strip`; `image` starts at the first channel of the
    /// group in the image's first pixel.
    fn copy(&self, image: &[u8], cursor: &Cursor, padding: u8, strip: &mut [u8]) {
        let shape = &self.shape;
        // Row and column of the first tap; the border is where they leave the image.
        let y = (cursor.y * shape.strides[0]) as isize - shape.pads[0] as isize;
        let x = (cursor.x * shape.strides[1]) as isize - shape.pads[1] as isize;
        if self.widen {
            let row: &mut [i16] = bytemuck::cast_slice_mut(&mut strip[..self.row_bytes]);
            let signed = self.signed;
            self.gather(image, (y, x), padding, &mut Words { row, signed });
        } else {
            let end = (self.row_bytes + SLACK).min(strip.len());
            self.gather(image, (y, x), padding, &mut Bytes(&mut strip[..end]));
        }
    }

    /// Copies the taps of one pixel, those outside the image as padding. `image` starts at the first
    /// channel of the group in the image's first pixel.
    fn gather(&self, image: &[u8], (y, x): (isize, isize), padding: u8, sink: &mut impl Sink) {
        let shape = &self.shape;
        let [kernel_h, kernel_w] = shape.kernel;
        let [down, right] = shape.dilations;
        let run = kernel_w * self.channels;
        // Kernel rows lie as far apart in the strip as the kernel reads them.
        let row = match self.form {
            Form::KernelRows => self.padded / self.segments,
            Form::Taps | Form::Gathered => run,
        };
        let joined = shape.groups == 1 && right == 1;
        if joined && shape.holds_window(y, x) {
            let start = y as usize * self.line + x as usize * shape.in_c;
            for ky in 0..kernel_h {
                sink.copy(ky * row, &image[start + ky * down * self.line..], run);
            }
            return;
        }
        for ky in 0..kernel_h {
            let at = ky * row;
            let y = y + (ky * down) as isize;
            if y < 0 || y >= shape.in_h as isize {
                sink.fill(at, run, padding);
                continue;
            }
            let line = y as usize * self.line;
            if joined {
                let left = (-x).clamp(0, kernel_w as isize) as usize;
                let end =
                    (shape.in_w as isize - x).clamp(left as isize, kernel_w as isize) as usize;
                sink.fill(at, left * self.channels, padding);
                if end > left {
                    let first = (x + left as isize) as usize * shape.in_c;
                    let source = &image[line + first..];
                    sink.copy(
                        at + left * self.channels,
                        source,
                        (end - left) * self.channels,
                    );
                }
                sink.fill(at + end * self.channels, run - end * self.channels, padding);
                continue;
            }
            for kx in 0..kernel_w {
                let at = at + kx * self.channels;
                let x = x + (kx * right) as isize;
                if x < 0 || x >= shape.in_w as isize {
                    sink.fill(at, self.channels, padding);
                } else {
                    let source = &image[line + x as usize * shape.in_c..];
                    sink.copy(at, source, self.channels);
                }
            }
        }
    }
}

/// Points a segment of some rows at pixels `step` bytes apart, from the start of `pixels` on.
fn point(pixels: &[u8], step: usize, table: &mut [*const u8]) {
    let mut pixel = pixels.as_ptr();
    for pointer in table {
        *pointer = pixel;
        pixel = pixel.wrapping_add(step);
    }
}

/// One gathered row, written in ascending order.
trait Sink {
    /// `length` elements of padding.
    fn fill(&mut self, at: usize, length: usize, padding: u8);
    /// The first `length` elements of `source`.
    fn copy(&mut self, at: usize, source: &[u8], length: usize);
}

/// A row of bytes, with room behind it.
struct Bytes<'a>(&'a mut [u8]);

impl Sink for Bytes<'_> {
    fn fill(&mut self, at: usize, length: usize, padding: u8) {
        self.0[at..at + length].fill(padding);
    }

    fn copy(&mut self, at: usize, source: &[u8], length: usize) {
        // Short runs go in whole vectors, which write past their end: what follows is written later.
        let mut done = 0;
        while length - done <= 2 * SLACK && done < length {
            let (Some(from), Some(to)) = (
                source.get(done..done + SLACK),
                self.0.get_mut(at + done..at + done + SLACK),
            ) else {
                break;
            };
            to.copy_from_slice(from);
            done = length.min(done + SLACK);
        }
        self.0[at + done..at + length].copy_from_slice(&source[done..length]);
    }
}

/// A row of 16-bit words.
struct Words<'a> {
    row: &'a mut [i16],
    signed: bool,
}

impl Sink for Words<'_> {
    fn fill(&mut self, at: usize, length: usize, padding: u8) {
        self.row[at..at + length].fill(widen(padding, self.signed));
    }

    fn copy(&mut self, at: usize, source: &[u8], length: usize) {
        let row = &mut self.row[at..at + length];
        // Two loops, so that neither tests the sign inside.
        if self.signed {
            row.iter_mut()
                .zip(source)
                .for_each(|(word, &byte)| *word = widen(byte, true));
        } else {
            row.iter_mut()
                .zip(source)
                .for_each(|(word, &byte)| *word = widen(byte, false));
        }
    }
}

#[inline(always)]
fn widen(byte: u8, signed: bool) -> i16 {
    if signed {
        i16::from(byte as i8)
    } else {
        i16::from(byte)
    }
}
