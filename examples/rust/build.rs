//! Generates the stubs. Needs protoc.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_server(false)
        .compile_protos(&["../../protos/evalrpc/v1/evaluation_service.proto"], &["../../protos"])
}
