//! Compiles the .proto files in pure Rust, so that a build needs no protoc, and writes the file
//! descriptor set that reflection and the text format need beside the generated code.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    let mut files = protox::compile(["grpc_service.proto"], ["protos"])?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        // Tensor contents stay views of the received frame, and maps encode in one order.
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds_with_config(files.clone(), config)?;

    for file in &mut files.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    Ok(())
}
