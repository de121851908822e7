use imbl::OrdSet;
use signalbox_config::Name;

/// Which `U`s refer to a resource, by the resource's name. A clone is cheap, a change costs itself.
#[derive(Clone)]
pub(super) struct Users<U>(
    /// `None` is never in it: as the least user of a name, it is where a search begins.
    OrdSet<(Name, Option<U>)>,
);

impl<U: Clone + Ord> Users<U> {
    pub(super) fn insert(&mut self, resource: &Name, user: U) {
        self.0.insert((resource.clone(), Some(user)));
    }

    pub(super) fn remove(&mut self, resource: &Name, user: U) {
        self.0.remove(&(resource.clone(), Some(user)));
    }

    /// All that refer to `resource`, in order.
    pub(super) fn of(&self, resource: &Name) -> impl Iterator<Item = &U> {
        let first = (resource.clone(), None);
        let all = self.0.range(first..);
        all.take_while(move |(name, _)| name == resource).filter_map(|(_, user)| user.as_ref())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<U: Clone + Ord> Default for Users<U> {
    fn default() -> Self {
        Self(OrdSet::new())
    }
}
