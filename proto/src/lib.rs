//! The messages of the wire, as generated from the `.proto` files beside this crate. No logic.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// `envoy.*`: the xDS v3 transport.
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

/// `google.*`: what xDS is built on.
pub mod google {
    pub mod protobuf {
        tonic::include_proto!("google.protobuf");
    }
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// `signalbox.*`: our own messages.
pub mod signalbox {
    pub mod config {
        pub mod v1 {
            tonic::include_proto!("signalbox.config.v1");
        }
    }
    pub mod report {
        pub mod v1 {
            tonic::include_proto!("signalbox.report.v1");
        }
    }
}

/// The type URL of [`signalbox::config::v1::Resource`].
pub const RESOURCE_TYPE_URL: &str = "type.googleapis.com/signalbox.config.v1.Resource";

/// The header of a discovery stream in which a proxy names its process, by letters and digits that no other process has:
/// it tells a proxy that was started again from two that share a node id.
pub const PROCESS_HEADER: &str = "signalbox-process";

/// The category of those `Node.extensions` that are plugin types.
pub const PLUGIN_TYPES: &str = "signalbox.plugin_types";

/// The header of a stream of counts in which a proxy says its node id.
pub const NODE_HEADER: &str = "signalbox-node";

/// The trailer in which a control plane says when a client that it has no room for is to come back, in milliseconds. gRPC
/// defines it for retries.
pub const RETRY_HEADER: &str = "grpc-retry-pushback-ms";

/// The xDS name of the commit marker.
pub const MARKER_NAME: &str = "revision";

/// The field of [`signalbox::config::v1::Resource`] that holds the commit marker.
pub const MARKER_TAG: u32 = 15;
