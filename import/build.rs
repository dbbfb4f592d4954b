//! Compiles the trimmed ONNX schema in pure Rust, so that a build needs no protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        // Tensor contents stay views of the file's one buffer.
        .bytes(["."])
        .compile_fds(files)?;
    Ok(())
}
