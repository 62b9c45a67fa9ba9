//! Compiles the protobuf files without a system `protoc`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "workload.proto",
        "hoplite/agent.proto",
        "hoplite/ca.proto",
        "hoplite/policy.proto",
        "hoplite/report.proto",
        "envoy/sds.proto",
        "envoy/ext_authz.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Bundles are megabytes: shared, not copied.
    tonic_prost_build::configure()
        .bytes(".hoplite.policy.v1")
        .codec_path("crate::codec::Frugal")
        .compile_fds(descriptors)?;
    if env::var_os("CARGO_FEATURE_OTLP").is_some() {
        compile_otlp()?;
    }
    Ok(())
}

/// What is only asked of others: it is no part of what our own servers say they serve.
fn compile_otlp() -> Result<(), Box<dyn Error>> {
    let files = ["common", "trace", "metrics"].map(|name| format!("opentelemetry/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
