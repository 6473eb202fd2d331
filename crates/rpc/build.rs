//! Compiles `proto/` without an external protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(["dormouse/node/v1/node.proto"], [&root])?;
    // Values of environment variables are not to be printed; `src/secret.rs` says what is instead.
    tonic_prost_build::configure()
        .skip_debug([".dormouse.node.v1.DeliverEnvironmentRequest.Variable"])
        .compile_fds(descriptors)?;
    Ok(())
}
