//! Notifications of other control planes about the rows of proxies that they wrote: only a hint, for what was sent while nobody
//! listened is lost.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The rows of proxies that were written since this was asked last.
#[derive(Debug, Default)]
pub struct ProxyHints {
    told: Mutex<Told>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Told {
    /// The writer and the id of each row.
    rows: HashSet<(Arc<str>, String)>,
    all: bool,
}

/// Which rows of proxies to read again.
#[derive(Debug, PartialEq, Eq)]
pub enum Hinted {
    /// These, by id; perhaps none.
    Some(Vec<String>),
    /// It is not known which.
    All,
}

impl ProxyHints {
    /// Ids that are kept. Beyond, all rows are read.
    const MAX: usize = 10_000;

    /// The longest text of [`Self::texts`], bytes: below the 8,000 of a notification.
    const MAX_TEXT: usize = 7_900;

    /// Wakes one waiter when something was told; keeps one wake-up for a waiter that comes later.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }

    /// Takes the hints of others than `writer`.
    pub fn take(&self, writer: &str) -> Hinted {
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        if told.all {
            return Hinted::All;
        }
        let others: HashSet<String> =
            told.rows.into_iter().filter(|(by, _)| **by != *writer).map(|(_, id)| id).collect();
        Hinted::Some(others.into_iter().collect())
    }

    /// Takes in a text of [`Self::texts`].
    pub(super) fn notify(&self, text: &str) {
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        let writer: Arc<str> = words.next().unwrap_or_default().into();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.rows.extend(words.map(|id| (writer.clone(), id.to_owned())));
        if told.rows.len() > Self::MAX {
            *told = Told { rows: HashSet::new(), all: true };
        }
        drop(told);
        self.notify.notify_one();
    }

    /// Something may have been told that was not heard.
    pub(super) fn notify_all(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Told { rows: HashSet::new(), all: true };
        self.notify.notify_one();
    }

    /// The notifications about rows that `writer` wrote. Ids have no spaces.
    pub(super) fn texts<'a>(writer: &str, ids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut texts = Vec::new();
        let mut text = String::new();
        for id in ids {
            if !text.is_empty() && text.len() + 1 + id.len() > Self::MAX_TEXT {
                texts.push(std::mem::take(&mut text));
            }
            if text.is_empty() {
                text.push_str(writer);
            }
            text.push(' ');
            text.push_str(id);
        }
        if !text.is_empty() {
            texts.push(text);
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(hints: &ProxyHints, writer: &str) -> Vec<String> {
        match hints.take(writer) {
            Hinted::Some(mut ids) => {
                ids.sort_unstable();
                ids
            }
            Hinted::All => vec!["*".to_owned()],
        }
    }

    #[test]
    fn what_one_tells_the_others_hear() {
        let hints = ProxyHints::default();
        let ids: Vec<String> = (0..1_000).map(|index| format!("{index:0>100}")).collect();
        let texts = ProxyHints::texts("a", ids.iter().map(String::as_str));
        assert!(texts.len() > 10 && texts.iter().all(|text| text.len() < 8_000));
        for text in &texts {
            hints.notify(text);
        }
        hints.notify("b x");
        assert_eq!(taken(&hints, "b"), ids);
        assert_eq!(taken(&hints, "b"), Vec::<String>::new());
        hints.notify("b x");
        assert_eq!(taken(&hints, "a"), ["x"]);
        assert_eq!(ProxyHints::texts("a", []), Vec::<String>::new());
    }

    #[test]
    fn what_was_not_heard_or_is_too_much_is_all() {
        let hints = ProxyHints::default();
        hints.notify("a x");
        hints.notify_all();
        assert_eq!(hints.take("b"), Hinted::All);
        for index in 0..=ProxyHints::MAX {
            hints.notify(&format!("a {index}"));
        }
        assert_eq!(hints.take("b"), Hinted::All);
    }
}
