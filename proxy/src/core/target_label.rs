//! Display names of targets.

/// A target's address as it was configured.
pub fn label(target: &signalbox_config::Target) -> String {
    if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    }
}
