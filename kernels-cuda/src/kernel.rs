//! The kernels by name, and one launch of one of them.

use core::ffi::c_void;

use crate::params::{
    BinaryParams, DepthwiseParams, DirectParams, DynamicParams, EdgeParams, FillParams,
    LayerNormParams, MatMulParams, MeanParams, MoveParams, OperandParams, PersistentParams,
    PoolParams, ProductParams, RescaleParams, ResizeParams, RowSumParams, RowsParams, ScaleParams,
    StepsParams, TableParams,
};

/// Threads of a block, of every kernel but those of two warpgroups or three.
const THREADS: u32 = 128;

macro_rules! kernels {
    ($($params:ident { $($variant:ident $name:literal,)* })*) => {
        /// A kernel, as its function is called in the images.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kernel {
            $($(#[doc = concat!("`", $name, "`, which takes ", stringify!($params), ".")] $variant,)*)*
        }

        impl Kernel {
            /// Every kernel, in the order of their discriminants.
            pub const ALL: &[Kernel] = &[$($(Kernel::$variant,)*)*];

            /// The function's name.
            pub const fn name(self) -> &'static str {
                match self { $($(Kernel::$variant => $name,)*)* }
            }

            /// The name in reports, which says of 4-bit weights that are multiplied as bytes that they
            /// save memory only.
            pub fn label(self) -> &'static str {
                match self {
                    $($(Kernel::$variant => {
                        if self.widens_nibbles() { concat!($name, " (int4: memory only)") } else { $name }
                    })*)*
                }
            }

            /// Bytes of its parameters.
            pub const fn parameter_bytes(self) -> usize {
                match self { $($(Kernel::$variant => size_of::<$params>(),)*)* }
            }
        }

        /// The parameters of a launch.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, clippy::enum_variant_names)]
        pub enum Params {
            $($params(Box<$params>),)*
        }

        impl Params {
            /// Where they are, as the driver wants to know.
            pub(crate) fn as_ptr(&self) -> *const c_void {
                match self { $(Params::$params(params) => (&raw const **params).cast(),)* }
            }

            /// Bytes of them.
            pub fn bytes(&self) -> usize {
                match self { $(Params::$params(_) => size_of::<$params>(),)* }
            }
        }

        $(impl From<$params> for Params {
            fn from(params: $params) -> Self {
                Params::$params(Box::new(params))
            }
        })*
    };
}

kernels! {
    ProductParams {
        ProductU8x128Rhu "product_u8_128_rhu",
        ProductU8x128F32 "product_u8_128_f32",
        ProductU8x128Any "product_u8_128_any",
        ProductI8x128Rhu "product_i8_128_rhu",
        ProductI8x128F32 "product_i8_128_f32",
        ProductI8x128Any "product_i8_128_any",
        ProductU8x64Rhu "product_u8_64_rhu",
        ProductU8x64F32 "product_u8_64_f32",
        ProductU8x64Any "product_u8_64_any",
        ProductI8x64Rhu "product_i8_64_rhu",
        ProductI8x64F32 "product_i8_64_f32",
        ProductI8x64Any "product_i8_64_any",
        ProductAnyx64Rhu "product_any_64_rhu",
        ProductAnyx64F32 "product_any_64_f32",
        ProductAnyx64Any "product_any_64_any",
        GroupU8x128Rhu "group_product_u8_128_rhu",
        GroupU8x128F32 "group_product_u8_128_f32",
        GroupU8x128Any "group_product_u8_128_any",
        GroupI8x128Rhu "group_product_i8_128_rhu",
        GroupI8x128F32 "group_product_i8_128_f32",
        GroupI8x128Any "group_product_i8_128_any",
        GroupU8x64Rhu "group_product_u8_64_rhu",
        GroupU8x64F32 "group_product_u8_64_f32",
        GroupU8x64Any "group_product_u8_64_any",
        GroupI8x64Rhu "group_product_i8_64_rhu",
        GroupI8x64F32 "group_product_i8_64_f32",
        GroupI8x64Any "group_product_i8_64_any",
        W4U8x128Rhu "product_w4_u8_128_rhu",
        W4U8x128F32 "product_w4_u8_128_f32",
        W4U8x128Any "product_w4_u8_128_any",
        W4U8x64Rhu "product_w4_u8_64_rhu",
        W4U8x64F32 "product_w4_u8_64_f32",
        W4U8x64Any "product_w4_u8_64_any",
        W4I8x128Rhu "product_w4_i8_128_rhu",
        W4I8x128F32 "product_w4_i8_128_f32",
        W4I8x128Any "product_w4_i8_128_any",
        W4I8x64Rhu "product_w4_i8_64_rhu",
        W4I8x64F32 "product_w4_i8_64_f32",
        W4I8x64Any "product_w4_i8_64_any",
        W4Anyx64Rhu "product_w4_any_64_rhu",
        W4Anyx64F32 "product_w4_any_64_f32",
        W4Anyx64Any "product_w4_any_64_any",
        W4U4x128Rhu "product_w4a4_u4_128_rhu",
        W4U4x128F32 "product_w4a4_u4_128_f32",
        W4U4x128Any "product_w4a4_u4_128_any",
        W4U4x64Rhu "product_w4a4_u4_64_rhu",
        W4U4x64F32 "product_w4a4_u4_64_f32",
        W4U4x64Any "product_w4a4_u4_64_any",
        W4I4x128Rhu "product_w4a4_i4_128_rhu",
        W4I4x128F32 "product_w4a4_i4_128_f32",
        W4I4x128Any "product_w4a4_i4_128_any",
        W4I4x64Rhu "product_w4a4_i4_64_rhu",
        W4I4x64F32 "product_w4a4_i4_64_f32",
        W4I4x64Any "product_w4a4_i4_64_any",
        GroupW4U8x128Rhu "group_product_w4_u8_128_rhu",
        GroupW4U8x128F32 "group_product_w4_u8_128_f32",
        GroupW4U8x128Any "group_product_w4_u8_128_any",
        GroupW4U8x64Rhu "group_product_w4_u8_64_rhu",
        GroupW4U8x64F32 "group_product_w4_u8_64_f32",
        GroupW4U8x64Any "group_product_w4_u8_64_any",
        GroupW4I8x128Rhu "group_product_w4_i8_128_rhu",
        GroupW4I8x128F32 "group_product_w4_i8_128_f32",
        GroupW4I8x128Any "group_product_w4_i8_128_any",
        GroupW4I8x64Rhu "group_product_w4_i8_64_rhu",
        GroupW4I8x64F32 "group_product_w4_i8_64_f32",
        GroupW4I8x64Any "group_product_w4_i8_64_any",
        RowU8x1 "row_product_u8_1",
        RowU8x4 "row_product_u8_4",
        RowI8x1 "row_product_i8_1",
        RowI8x4 "row_product_i8_4",
        RowW4U8x1 "row_product_w4_u8_1",
        RowW4U8x4 "row_product_w4_u8_4",
        RowW4I8x1 "row_product_w4_i8_1",
        RowW4I8x4 "row_product_w4_i8_4",
        BitsXor1Rhu "bit_product_xor_1_rhu",
        BitsXor1Any "bit_product_xor_1_any",
        BitsXor2Rhu "bit_product_xor_2_rhu",
        BitsXor2Any "bit_product_xor_2_any",
        BitsAnd1Rhu "bit_product_and_1_rhu",
        BitsAnd1Any "bit_product_and_1_any",
        BitsAnd2Rhu "bit_product_and_2_rhu",
        BitsAnd2Any "bit_product_and_2_any",
    }
    PersistentParams {
        PairU8x256Rhu "pair_product_u8_256_rhu",
        PairU8x256F32 "pair_product_u8_256_f32",
        PairU8x256Any "pair_product_u8_256_any",
        PairI8x256Rhu "pair_product_i8_256_rhu",
        PairI8x256F32 "pair_product_i8_256_f32",
        PairI8x256Any "pair_product_i8_256_any",
        TurnU8x128Rhu "turn_product_u8_128_rhu",
        TurnU8x128F32 "turn_product_u8_128_f32",
        TurnU8x128Any "turn_product_u8_128_any",
        TurnI8x128Rhu "turn_product_i8_128_rhu",
        TurnI8x128F32 "turn_product_i8_128_f32",
        TurnI8x128Any "turn_product_i8_128_any",
        TurnU8x64Rhu "turn_product_u8_64_rhu",
        TurnU8x64F32 "turn_product_u8_64_f32",
        TurnU8x64Any "turn_product_u8_64_any",
        TurnI8x64Rhu "turn_product_i8_64_rhu",
        TurnI8x64F32 "turn_product_i8_64_f32",
        TurnI8x64Any "turn_product_i8_64_any",
    }
    DirectParams { Direct "direct", }
    DepthwiseParams { Depthwise "depthwise", }
    MatMulParams { MatMul "mat_mul", }
    OperandParams { PackOperand "pack_operand", }
    RowSumParams { RowSums "row_sums", }
    BinaryParams { Binary "binary", }
    TableParams { Table "table", }
    RescaleParams { Rescale "rescale", }
    MoveParams { Move "move", }
    FillParams { Fill "fill", }
    ResizeParams { Resize "resize", }
    PoolParams { Pool "pool", }
    MeanParams { Mean "mean", }
    RowsParams {
        QLinearSoftmax "qlinear_softmax",
        TfliteSoftmax "tflite_softmax",
        ArgMax "arg_max",
        IntegerSoftmax "integer_softmax",
    }
    LayerNormParams { LayerNorm "layer_norm", }
    EdgeParams { Quantize "quantize", Dequantize "dequantize", }
    StepsParams { EdgeThresholds "edge_thresholds", }
    DynamicParams { DynamicQuantize "dynamic_quantize", }
    ScaleParams { ScaleAccumulator "scale_accumulator", }
}

impl Kernel {
    /// Whether it multiplies by wgmma, which one architecture alone has.
    pub fn needs_wgmma(self) -> bool {
        self.name().starts_with("group_") || self.is_persistent()
    }

    /// Whether its blocks stay on their multiprocessors, and one of their three warpgroups loads.
    pub fn is_persistent(self) -> bool {
        self.name().starts_with("pair_") || self.name().starts_with("turn_")
    }

    /// Whether it computes products with packed weights.
    pub fn is_product(self) -> bool {
        self.name().contains("product_")
    }

    /// Whether blocks may share a tile of it, each a part of its depth.
    pub fn splits(self) -> bool {
        self.is_product() && !self.is_of_rows() && !self.is_persistent()
    }

    /// Whether it computes products of few rows.
    pub(crate) fn is_of_rows(self) -> bool {
        self.name().starts_with("row_")
    }

    /// Whether it reads 4-bit weights and multiplies bytes.
    fn widens_nibbles(self) -> bool {
        self.name().contains("product_w4_")
    }

    /// Whether an architecture's image holds it: some have units that others lack.
    pub fn is_in(self, image: &str) -> bool {
        let name = self.name();
        if self.needs_wgmma() || name.contains("_and_") {
            image == "sm_90a"
        } else if name.contains("_w4a4_") || name.contains("_xor_") {
            crate::images::has_narrow_units(image)
        } else {
            true
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        if self.is_persistent() {
            3 * THREADS
        } else if self.needs_wgmma() {
            2 * THREADS
        } else {
            THREADS
        }
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Parameters.
    pub params: Params,
}

impl Launch {
    /// A launch of one thread an element.
    pub(crate) fn elements(kernel: Kernel, count: usize, params: impl Into<Params>) -> Self {
        let blocks = count.div_ceil(THREADS as usize).clamp(1, i32::MAX as usize);
        Launch {
            kernel,
            grid: [blocks as u32, 1, 1],
            shared_bytes: 0,
            params: params.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_tell_which_narrow_weights_save_memory_only() {
        let label = |name: &str| {
            Kernel::ALL
                .iter()
                .find(|k| k.name() == name)
                .map(|k| k.label())
        };
        for (name, expected) in [
            (
                "row_product_w4_u8_1",
                "row_product_w4_u8_1 (int4: memory only)",
            ),
            (
                "group_product_w4_i8_128_any",
                "group_product_w4_i8_128_any (int4: memory only)",
            ),
            ("product_w4a4_u4_64_rhu", "product_w4a4_u4_64_rhu"),
            ("product_i8_64_rhu", "product_i8_64_rhu"),
        ] {
            assert_eq!(label(name), Some(expected));
        }
    }
}
