//! The check that the build makes before it embeds the committed images.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[path = "../build/manifest.rs"]
mod manifest;

use manifest::{pinned, stale};

#[test]
fn images_of_another_compiler_or_source_are_stale() {
    let written = "nvcc 13.0.88\naa  one.cuh\nbb  two.cu\n";
    let compiler = pinned("pip install nvidia-nvvm==13.0.88 nvidia-cuda-nvcc==13.0.88 \\\n");
    assert_eq!(compiler.as_deref(), Some("nvcc 13.0.88"));
    let sources = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
        let own = |&(name, hash): &(&str, &str)| (name.to_owned(), hash.to_owned());
        list.iter().map(own).collect()
    };
    let same = sources(&[("one.cuh", "aa"), ("two.cu", "bb")]);
    let compiler = compiler.as_deref();
    assert_eq!(stale(written, compiler, &same), None);

    let newer = stale(written, Some("nvcc 13.1.0"), &same).unwrap();
    assert!(newer.contains("by 'nvcc 13.0.88'"), "{newer}");
    assert!(newer.ends_with("pins is 'nvcc 13.1.0'"), "{newer}");
    assert!(stale(written, None, &same).is_some());
    let (_, without) = written.split_once('\n').unwrap();
    assert!(stale(without, compiler, &same).is_some());
    assert!(stale("", compiler, &same).is_some());
    for (list, file) in [
        (&[("one.cuh", "aa"), ("two.cu", "bc")][..], "two.cu"),
        (&[("one.cuh", "aa")], "two.cu"),
        (&[("one.cuh", "aa"), ("two.cu", "bb"), ("x.h", "cc")], "x.h"),
    ] {
        let said = stale(written, compiler, &sources(list)).unwrap();
        let expected = format!("kernels-cuda/cuda/{file} is not what");
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn the_committed_manifest_names_the_pinned_compiler() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let toolchain = fs::read_to_string(root.join("toolchain.sh")).unwrap();
    let manifest = fs::read_to_string(root.join("prebuilt/manifest.txt")).unwrap();
    assert_eq!(
        manifest.lines().next().map(str::to_owned),
        pinned(&toolchain)
    );
}
