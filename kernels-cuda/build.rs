//! Finds the kernels' images: the committed ones where they were made from these very sources, else
//! freshly compiled ones where there is an nvcc, else nothing but a clear error.
//!
//! nvcc is looked for in `REQUANT_NVCC`, `CUDA_HOME`, `CUDA_PATH`, the `PATH` and the folder that
//! `toolchain.sh` makes. Which GPU this machine has plays no part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs, io};

use sha2::{Digest, Sha256};

#[path = "build/manifest.rs"]
mod manifest;

const IMAGES: [&str; 8] = [
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90a",
    "sm_100a",
    "sm_120a",
    "compute_80",
];

fn main() {
    if let Err(error) = build() {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn build() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let (sources, prebuilt) = (root.join("cuda"), root.join("prebuilt"));
    for watched in ["cuda", "prebuilt", "build.rs", "build", "toolchain.sh"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    for variable in ["REQUANT_NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let folder = match changed(&root, &sources, &prebuilt)? {
        None => prebuilt,
        Some(why) => {
            let Some(nvcc) = find_nvcc(&root) else {
                return Err(io::Error::other(format!(
                    "{why}, and there is no nvcc: run kernels-cuda/compile.sh, which installs one and makes them anew"
                )));
            };
            for image in IMAGES {
                compile(&nvcc, &sources, &out, image)?;
            }
            out.clone()
        }
    };
    let mut table = String::from("const IMAGES: &[(&str, &[u8])] = &[\n");
    for image in IMAGES {
        let path = folder.join(format!("{}.gz", file_name(image)));
        let _ = writeln!(table, "    ({image:?}, include_bytes!({path:?})),");
    }
    table.push_str("];\n");
    fs::write(out.join("images.rs"), table)
}

/// What of the committed images is not as the sources and the toolchain are.
fn changed(root: &Path, sources: &Path, prebuilt: &Path) -> io::Result<Option<String>> {
    let Ok(written) = fs::read_to_string(prebuilt.join("manifest.txt")) else {
        let missing = "kernels-cuda/prebuilt/manifest.txt is missing";
        return Ok(Some(missing.to_owned()));
    };
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(sources)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let hash = Sha256::digest(fs::read(entry.path())?);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        hashes.insert(name, hash);
    }
    let compiler = manifest::pinned(&fs::read_to_string(root.join("toolchain.sh"))?);
    Ok(manifest::stale(&written, compiler.as_deref(), &hashes))
}

fn find_nvcc(root: &Path) -> Option<PathBuf> {
    let named = env::var_os("REQUANT_NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let in_homes = homes.map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let python = fs::read_dir(root.join(".cuda/lib")).into_iter().flatten();
    let in_wheels = python
        .flatten()
        .map(|entry| entry.path().join("site-packages/nvidia/cu13/bin/nvcc"));
    let mut all = named
        .into_iter()
        .chain(in_homes)
        .chain(in_path)
        .chain(in_wheels);
    all.find(|nvcc| nvcc.is_file())
}

fn file_name(image: &str) -> String {
    let kind = if image.starts_with("compute_") {
        "ptx"
    } else {
        "cubin"
    };
    format!("{image}.{kind}")
}

/// As `compile.sh` does.
fn compile(nvcc: &Path, sources: &Path, out: &Path, image: &str) -> io::Result<()> {
    let file = out.join(file_name(image));
    let kind: &[&str] = if image.starts_with("compute_") {
        &["-ptx", "-DREQUANT_PORTABLE"]
    } else {
        &["-cubin"]
    };
    let output = Command::new(nvcc)
        .args(kind)
        .args([
            &format!("-arch={image}"),
            "-O3",
            "-std=c++17",
            "-fmad=false",
            "-o",
        ])
        .arg(&file)
        .arg(sources.join("requant.cu"))
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "{} for {image}: {said}",
            nvcc.display()
        )));
    }
    let packed = fs::File::create(out.join(format!("{}.gz", file_name(image))))?;
    let mut packer = flate2::write::GzEncoder::new(packed, flate2::Compression::best());
    packer.write_all(&fs::read(&file)?)?;
    packer.finish()?;
    Ok(())
}
