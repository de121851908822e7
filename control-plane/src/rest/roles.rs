//! The order of roles.

use crate::store::{Role, StoredRole};

/// True if `role` may do all that `needed` may. A role that this version does not know may do nothing.
pub(super) fn suffices(role: &StoredRole, needed: Role) -> bool {
    let Some(role) = role.known() else { return false };
    let rank = |role| match role {
        Role::Proxy => 0,
        Role::Viewer => 1,
        Role::Editor => 2,
        Role::Admin => 3,
    };
    rank(role) >= rank(needed)
}
