//! The shape of a convolution, and of the matrix products that are one.

use crate::KernelError;
use crate::error::product;

/// The shape of a convolution. Pads below and to the right follow from the output's size: every tap
/// outside the image holds the zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input height.
    pub in_h: usize,
    /// Input width.
    pub in_w: usize,
    /// Input channels, of all groups.
    pub in_c: usize,
    /// Output height.
    pub out_h: usize,
    /// Output width.
    pub out_w: usize,
    /// Output channels, of all groups.
    pub out_c: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub strides: [usize; 2],
    /// Pads above and to the left.
    pub pads: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilations: [usize; 2],
    /// Groups; they divide both channel counts.
    pub groups: usize,
}

impl ConvShape {
    /// The product of an `m×k` matrix of activations with a `k×n` matrix of weights.
    pub const fn gemm(m: usize, k: usize, n: usize) -> Self {
        ConvShape {
            in_h: 1,
            in_w: m,
            in_c: k,
            out_h: 1,
            out_w: m,
            out_c: n,
            kernel: [1, 1],
            strides: [1, 1],
            pads: [0, 0],
            dilations: [1, 1],
            groups: 1,
        }
    }

    /// Weights that one output value sees.
    pub const fn depth(&self) -> usize {
        self.kernel[0] * self.kernel[1] * (self.in_c / self.groups)
    }

    /// Whether each channel is convolved with a kernel of its own.
    pub const fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.in_c && self.groups == self.out_c
    }

    /// Whether every tap of the pixel whose first tap is at (y, x) lies in the image.
    pub(crate) const fn holds_window(&self, y: isize, x: isize) -> bool {
        let down = ((self.kernel[0] - 1) * self.dilations[0]) as isize;
        let right = ((self.kernel[1] - 1) * self.dilations[1]) as isize;
        y >= 0 && x >= 0 && y + down < self.in_h as isize && x + right < self.in_w as isize
    }

    /// Whether every tap of every output pixel lies in the image.
    pub fn stays_inside(&self) -> bool {
        let last = |axis: usize| ([self.out_h, self.out_w][axis] - 1) * self.strides[axis];
        self.pads[0] == 0
            && self.pads[1] == 0
            && self.holds_window(last(0) as isize, last(1) as isize)
    }

    /// Elements of one input image.
    pub const fn input_elements(&self) -> usize {
        self.in_h * self.in_w * self.in_c
    }

    /// Elements of one output image.
    pub const fn output_elements(&self) -> usize {
        self.out_h * self.out_w * self.out_c
    }

    /// Multiply-accumulates of one image.
    pub const fn macs(&self) -> usize {
        self.output_elements() * self.depth()
    }

    /// Checks that the dimensions are positive, that groups divide the channels, and that sizes and
    /// coordinates fit the address space.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] and [`KernelError::TooLarge`].
    pub fn validate(&self) -> Result<(), KernelError> {
        for (name, value) in [
            ("input height", self.in_h),
            ("input width", self.in_w),
            ("input channels", self.in_c),
            ("output height", self.out_h),
            ("output width", self.out_w),
            ("output channels", self.out_c),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.strides[0]),
            ("horizontal stride", self.strides[1]),
            ("vertical dilation", self.dilations[0]),
            ("horizontal dilation", self.dilations[1]),
            ("groups", self.groups),
        ] {
            if value == 0 {
                return Err(KernelError::Dimension { name, value });
            }
        }
        if !self.in_c.is_multiple_of(self.groups) || !self.out_c.is_multiple_of(self.groups) {
            return Err(KernelError::Dimension {
                name: "groups",
                value: self.groups,
            });
        }
        product(&[self.in_h, self.in_w, self.in_c])?;
        product(&[self.out_h, self.out_w, self.out_c, 8])?;
        product(&[self.out_c, self.kernel[0], self.kernel[1], self.in_c, 8])?;
        for axis in 0..2 {
            let out = [self.out_h, self.out_w][axis];
            // Coordinates of taps are computed with a sign.
            for factors in [
                [out, self.strides[axis]],
                [self.kernel[axis], self.dilations[axis]],
                [self.pads[axis], 1],
            ] {
                if product(&factors)? > isize::MAX as usize / 4 {
                    return Err(KernelError::TooLarge);
                }
            }
        }
        Ok(())
    }
}
