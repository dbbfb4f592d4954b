//! What a device could do at most, in multiplications and additions of 8 bits.

use requant_kernels_cuda::Properties;

/// 10^12 operations a second (2 a multiply-accumulate), and where the number is from.
pub(crate) fn tops(properties: &Properties) -> (f64, &'static str) {
    // H100 and H200 (SXM) by their data sheet, whose clock is below the highest.
    let name = &properties.name;
    if properties.multiprocessors == 132 && (name.contains("H200") || name.contains("H100")) {
        return (1979.0, "data sheet");
    }
    // Operations of a multiprocessor in a clock, by NVIDIA's papers on the architectures.
    let each = match properties.capability {
        (8, 0) => 4096.0,
        (9, _) => 8192.0,
        (10, _) => 16_384.0,
        (_, _) => 2048.0,
    };
    let clock = properties.clock_khz as f64 * 1e3;
    let all = properties.multiprocessors as f64 * each * clock;
    (all / 1e12, "multiprocessors and highest clock")
}
