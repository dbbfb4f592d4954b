//! Whether the committed images were made from these sources by the pinned compiler: what `compile.sh` wrote
//! down beside them is compared with what is there. Shared by the build and its test.

use std::collections::BTreeMap;

/// The compiler that the toolchain's script pins, as the manifest's first line names it.
pub(crate) fn pinned(toolchain: &str) -> Option<String> {
    let after = toolchain.split("nvidia-cuda-nvcc==").nth(1)?;
    let version = after.split_whitespace().next()?;
    Some(format!("nvcc {version}"))
}

/// Why images with this manifest are not those of the compiler and the sources, which are given by name with
/// their hashes: the first thing that differs, or is missing from either.
pub(crate) fn stale(
    manifest: &str,
    compiler: Option<&str>,
    sources: &BTreeMap<String, String>,
) -> Option<String> {
    let mut lines = manifest.lines();
    let made_by = lines.next().unwrap_or_default();
    if Some(made_by) != compiler {
        let pinned = compiler.unwrap_or("none");
        return Some(format!(
            "the images in kernels-cuda/prebuilt were compiled by '{made_by}', the compiler that \
             kernels-cuda/toolchain.sh pins is '{pinned}'"
        ));
    }
    let other = |name: &str| {
        format!(
            "kernels-cuda/cuda/{name} is not what the images in kernels-cuda/prebuilt were compiled from"
        )
    };
    let mut listed: BTreeMap<&str, &str> = lines
        .filter_map(|line| line.split_once("  "))
        .map(|(hash, file)| (file, hash))
        .collect();
    for (name, hash) in sources {
        if listed.remove(name.as_str()) != Some(hash.as_str()) {
            return Some(other(name));
        }
    }
    listed.into_keys().next().map(other)
}
