//! The rules, in the order in which they speak.

use super::facts::Facts;
use super::finding::Finding;
use super::proxy_rules::{database, lost, rejected};
use super::request_rules::{failing, given_up, overloaded, refused, slow, unmatched};

/// Looks at the facts by all rules.
pub(super) fn look(facts: &Facts) -> Vec<Finding> {
    let mut findings = rejected(facts);
    findings.extend(database(facts));
    findings.extend(lost(facts));
    for fleet in facts.fleets() {
        let before = findings.len();
        // Where requests fail, some wait for a timeout, and clients give up: that is the same, and the first rule speaks.
        findings.extend(
            overloaded(facts, &fleet).or_else(|| failing(facts, &fleet)).or_else(|| slow(facts, &fleet)),
        );
        findings.extend(unmatched(facts, &fleet));
        findings.extend(refused(facts, &fleet));
        if findings.len() == before {
            findings.extend(given_up(facts, &fleet));
        }
    }
    findings
}

#[cfg(test)]
mod tests;
