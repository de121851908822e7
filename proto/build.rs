//! Compiles the .proto files without `protoc`: `protox` is a compiler in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/envoy/service/discovery/v3/discovery.proto",
        "proto/signalbox/config/v1/config.proto",
        "proto/signalbox/report/v1/report.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Fan-out shares one encoding of a resource between all streams.
        .bytes(".google.protobuf.Any")
        .bytes(".signalbox")
        // Our own `Any`, because the one of `prost-types` copies its value.
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Struct", "::prost_types::Struct")
        .extern_path(".google.protobuf.Timestamp", "::prost_types::Timestamp")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
