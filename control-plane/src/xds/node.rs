//! Checks the `Node` of a stream's first request: the proxy that opens the stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use signalbox_config::node::{MAX_LABELS, check_label};
use signalbox_config::{Name, NodeId};
use signalbox_plugin::Registry;
use signalbox_proto::PLUGIN_TYPES;
use signalbox_proto::envoy::config::core::v3::Node as WireNode;

use crate::board::Node;

/// The proxy that `node` is, or why it cannot be one.
pub(super) fn parse(node: WireNode, address: SocketAddr) -> Result<Node, String> {
    let id: NodeId = node.id.parse().map_err(|message| format!("node.id {message}"))?;
    let fleet = if node.cluster.is_empty() { "default" } else { &node.cluster };
    let fleet: Name = fleet.parse().map_err(|message| format!("node.cluster, the fleet: {message}"))?;
    let mut labels = BTreeMap::new();
    for (key, value) in node.metadata.unwrap_or_default().fields {
        // Other xDS clients have metadata of other shapes, which are no labels.
        if let Some(prost_types::value::Kind::StringValue(value)) = value.kind {
            check_label(&key, &value).map_err(|message| format!("node.metadata: {message}"))?;
            labels.insert(key, value);
        }
    }
    if labels.len() > MAX_LABELS {
        return Err(format!("node.metadata: at most {MAX_LABELS} labels"));
    }
    let mut types: Vec<Box<str>> = node
        .extensions
        .into_iter()
        .filter(|extension| extension.category == PLUGIN_TYPES && extension.name.len() <= MAX_TYPE_NAME)
        .map(|extension| extension.name.into_boxed_str())
        .take(Registry::MAX_TYPES)
        .collect();
    types.sort_unstable();
    Ok(Node {
        plugin_types: (!types.is_empty()).then(|| types.into()),
        id: id.as_str().into(),
        fleet: fleet.as_str().into(),
        labels,
        version: node.user_agent_version.chars().take(MAX_VERSION).collect(),
        address: address.to_string(),
    })
}

const MAX_VERSION: usize = 64;
const MAX_TYPE_NAME: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn node(id: &str, fleet: &str) -> WireNode {
        WireNode { id: id.to_owned(), cluster: fleet.to_owned(), ..WireNode::default() }
    }

    #[test]
    fn a_node_without_a_fleet_is_of_the_default_one() {
        assert_eq!(&*parse(node("p1", ""), PEER).unwrap().fleet, "default");
        assert_eq!(&*parse(node("p1", "edge"), PEER).unwrap().fleet, "edge");
    }

    #[test]
    fn what_cannot_stand_in_a_path_is_no_id() {
        for id in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(parse(node(id, ""), PEER).unwrap_err().contains("node.id"), "{id}");
        }
        assert!(parse(node("0198-a.b:c@d_e", ""), PEER).is_ok());
        assert!(parse(node("p1", "No Fleet"), PEER).unwrap_err().contains("fleet"));
    }

    #[test]
    fn labels_are_bounded_and_other_metadata_is_no_label() {
        let value = |kind| prost_types::Value { kind: Some(kind) };
        let text = |text: &str| value(prost_types::value::Kind::StringValue(text.to_owned()));
        let mut with = node("p1", "");
        let fields = [
            ("zone".to_owned(), text("a")),
            ("weight".to_owned(), value(prost_types::value::Kind::NumberValue(1.0))),
        ];
        with.metadata = Some(prost_types::Struct { fields: fields.into() });
        let labels = parse(with, PEER).unwrap().labels;
        assert_eq!(labels, [("zone".to_owned(), "a".to_owned())].into());

        let mut long = node("p1", "");
        let fields = [("zone".to_owned(), text(&"x".repeat(257)))];
        long.metadata = Some(prost_types::Struct { fields: fields.into() });
        assert!(parse(long, PEER).is_err());

        let mut many = node("p1", "");
        let fields = (0..65).map(|index| (format!("l{index}"), text("x"))).collect();
        many.metadata = Some(prost_types::Struct { fields });
        assert!(parse(many, PEER).is_err());
    }
}
