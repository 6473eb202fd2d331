//! Compiles `proto/` without an external protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(["dormouse/node/v1/node.proto"], [&root])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
