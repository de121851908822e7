//! The filters of plugins that a body passes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, response};
use http_body::Frame;
use signalbox_config::Name;
use signalbox_plugin::{Abort, BodyFilter, BodyObserver, Outcomes, Output};

/// Filters, in the order in which a body passes them, and what has passed them all.
#[derive(Default)]
pub struct Filters {
    stages: Vec<Stage>,
    passed: VecDeque<Bytes>,
    /// The trailers, once the body has ended.
    trailers: Option<HeaderMap>,
    ended: bool,
    /// True if a filter may hold something back since the last pause.
    is_holding: bool,
    /// True if one of them may change the body.
    is_changing: bool,
}

/// An observer as a filter.
struct Observing(Box<dyn BodyObserver>);

impl BodyFilter for Observing {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.0.on_data(&data);
        out.push(data);
        Ok(())
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, _: &mut Output) -> Result<(), Abort> {
        self.0.on_end(trailers);
        Ok(())
    }
}

struct Stage {
    filter: Box<dyn BodyFilter>,
    plugin: Name,
    outcomes: Outcomes,
}

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("plugin {0} ended the body: {reason}", reason = .1.reason)]
    Aborted(Name, Abort),
    #[error("plugin {0} panicked")]
    Panicked(Name),
}

/// The error of a body that passes filters.
#[derive(Debug)]
pub enum FilteredError<E> {
    Source(E),
    Filter(FilterError),
}

/// A call of a filter with the place for its output.
type Step<'s> = &'s mut dyn FnMut(&mut dyn BodyFilter, &mut Output) -> Result<(), Abort>;

impl Filters {
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// True if one of them may change the body; observers do not.
    pub fn may_change(&self) -> bool {
        self.is_changing
    }

    /// Has this part come out before all others, unseen by the filters.
    pub fn begin_with(&mut self, part: Bytes) {
        self.passed.push_back(part);
    }

    /// True if a part is on its way out that filters added now would not see.
    pub fn has_passed(&self) -> bool {
        !self.passed.is_empty()
    }

    /// Adds an observer of `plugin` behind the others.
    pub fn observe(&mut self, observer: Box<dyn BodyObserver>, plugin: &Name, outcomes: &Outcomes) {
        self.add(Box::new(Observing(observer)), plugin, outcomes);
    }

    /// Adds a filter of `plugin` behind the others.
    pub fn push(&mut self, filter: Box<dyn BodyFilter>, plugin: &Name, outcomes: &Outcomes) {
        self.is_changing = true;
        self.add(filter, plugin, outcomes);
    }

    /// Tells observers of the end of a body that has no trailers. The receiver of a body of known length may not ask for more.
    pub fn end_unchanged(&mut self) {
        if !self.is_changing && !self.ended {
            // A panic is no reason to break off a response that is complete.
            let _ = self.end(HeaderMap::new());
            self.ended = true;
        }
    }

    fn add(&mut self, filter: Box<dyn BodyFilter>, plugin: &Name, outcomes: &Outcomes) {
        self.stages.push(Stage { filter, plugin: plugin.clone(), outcomes: outcomes.clone() });
    }

    /// The next part of the body that `source` has.
    pub fn poll<E>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, FilteredError<E>>>> {
        loop {
            if let Some(part) = self.passed.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if self.ended {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            if let Err(error) = ready!(self.poll_ready(cx)) {
                return Poll::Ready(Some(Err(FilteredError::Filter(error))));
            }
            let passed = match source(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.pass(data),
                    Err(frame) => self.end(frame.into_trailers().unwrap_or_default()),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(FilteredError::Source(error)))),
                Poll::Ready(None) => self.end(HeaderMap::new()),
                Poll::Pending if std::mem::take(&mut self.is_holding) => {
                    match self.run(Vec::new(), &mut |filter, out| filter.on_pause(out)) {
                        Ok(()) if self.passed.is_empty() => return Poll::Pending,
                        passed => passed,
                    }
                }
                Poll::Pending => return Poll::Pending,
            };
            if let Err(error) = passed {
                return Poll::Ready(Some(Err(FilteredError::Filter(error))));
            }
        }
    }

    /// True if the head of the response waits for the first part of the body.
    pub fn hold_head(&self) -> bool {
        self.stages.iter().any(|stage| stage.filter.holds_head())
    }

    /// Lets the filters change the head that has waited.
    pub fn finish_head(&mut self, head: &mut response::Parts) -> Result<(), FilterError> {
        for Stage { filter, plugin, outcomes } in &mut self.stages {
            let finish = AssertUnwindSafe(|| filter.finish_head(head));
            catch_unwind(finish).map_err(|_| panicked(plugin, outcomes))?;
        }
        Ok(())
    }

    /// Puts back a part that [`Filters::poll`] has returned; it comes next.
    pub fn unread(&mut self, part: Frame<Bytes>) {
        match part.into_data() {
            Ok(data) => self.passed.push_front(data),
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    /// True if nothing is left of the body.
    pub fn is_end(&self) -> bool {
        self.ended && self.passed.is_empty() && self.trailers.is_none()
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        for stage in &mut self.stages {
            let is_ready = catch_unwind(AssertUnwindSafe(|| stage.filter.poll_ready(cx).is_ready()));
            match is_ready {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(_) => return Poll::Ready(Err(panicked(&stage.plugin, &stage.outcomes))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn pass(&mut self, data: Bytes) -> Result<(), FilterError> {
        self.is_holding = true;
        self.run(vec![data], &mut |_, _| Ok(()))
    }

    fn end(&mut self, mut trailers: HeaderMap) -> Result<(), FilterError> {
        self.run(Vec::new(), &mut |filter, out| filter.on_end(&mut trailers, out))?;
        self.ended = true;
        self.trailers = (!trailers.is_empty()).then_some(trailers);
        Ok(())
    }

    /// Passes `parts` through all filters, and takes a step with each behind what the one before it has put out.
    fn run(&mut self, mut parts: Vec<Bytes>, step: Step<'_>) -> Result<(), FilterError> {
        for Stage { filter, plugin, outcomes } in &mut self.stages {
            let mut out = Output::default();
            let ran = catch_unwind(AssertUnwindSafe(|| {
                parts.drain(..).try_for_each(|part| filter.on_data(part, &mut out))?;
                step(&mut **filter, &mut out)
            }));
            match ran {
                Ok(Ok(())) => parts.extend(out.take()),
                Ok(Err(abort)) => return Err(FilterError::Aborted(plugin.clone(), abort)),
                Err(_) => return Err(panicked(plugin, outcomes)),
            }
        }
        self.passed.extend(parts);
        Ok(())
    }
}

#[cold]
fn panicked(plugin: &Name, outcomes: &Outcomes) -> FilterError {
    outcomes.count(0, Outcomes::PANICKED);
    FilterError::Panicked(plugin.clone())
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.stages.iter().map(|stage| &stage.plugin)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    /// Says everything twice, and keeps the second time back until there is a pause.
    #[derive(Default)]
    struct Echo(Vec<Bytes>);

    impl BodyFilter for Echo {
        fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
            assert!(data != "panic");
            self.0.push(data.clone());
            out.push(data);
            Ok(())
        }

        fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
            self.0.drain(..).for_each(|part| out.push(part));
            Ok(())
        }

        fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
            trailers.insert("x-echoes", 1.into());
            self.on_pause(out)
        }
    }

    /// The output when these parts come in; an empty one is a pause.
    fn filtered(parts: &[&'static str], filters: usize) -> Vec<String> {
        let mut all = Filters::default();
        let (name, outcomes) = ("echo".parse().unwrap(), Outcomes::new(&[], 1));
        (0..filters).for_each(|_| all.push(Box::<Echo>::default(), &name, &outcomes));
        let mut cx = Context::from_waker(Waker::noop());
        let mut parts = parts.iter();
        let mut seen = Vec::new();
        loop {
            let next = all.poll(&mut cx, |_| match parts.next() {
                Some(&"") => Poll::Pending,
                Some(part) => {
                    Poll::Ready(Some(Ok::<_, ()>(Frame::data(Bytes::from_static(part.as_bytes())))))
                }
                None => Poll::Ready(None),
            });
            match next {
                Poll::Pending => seen.push("…".to_owned()),
                Poll::Ready(None) => return seen,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => seen.push(String::from_utf8(data.to_vec()).unwrap()),
                    Err(frame) => seen.push(format!("{:?}", frame.into_trailers().unwrap())),
                },
                Poll::Ready(Some(Err(FilteredError::Filter(error)))) => {
                    seen.push(error.to_string());
                    return seen;
                }
                Poll::Ready(Some(Err(FilteredError::Source(())))) => panic!("the source has no errors"),
            }
        }
    }

    #[test]
    fn what_is_held_back_comes_at_a_pause_and_at_the_end() {
        let trailers = "{\"x-echoes\": \"1\"}";
        assert_eq!(filtered(&["a", "b", "", "", "c"], 1), ["a", "b", "a", "b", "…", "c", "c", trailers]);
        assert_eq!(filtered(&["a"], 2), ["a", "a", "a", "a", trailers]);
        assert_eq!(filtered(&[], 1), [trailers]);
    }

    /// Notes what it sees, and panics at the end if it is to.
    struct Witness(Rc<RefCell<String>>, bool);

    impl BodyObserver for Witness {
        fn on_data(&mut self, data: &Bytes) {
            self.0.borrow_mut().push_str(std::str::from_utf8(data).unwrap());
        }

        fn on_end(&mut self, _: &HeaderMap) {
            self.0.borrow_mut().push('.');
            assert!(!self.1, "panics");
        }
    }

    #[test]
    fn an_observer_changes_nothing_and_learns_of_the_end_once() {
        for panics in [false, true] {
            let seen = Rc::<RefCell<String>>::default();
            let mut all = Filters::default();
            let (name, outcomes) = ("echo".parse().unwrap(), Outcomes::new(&[], 1));
            all.observe(Box::new(Witness(Rc::clone(&seen), panics)), &name, &outcomes);
            assert!(!all.is_empty() && !all.may_change());
            let mut cx = Context::from_waker(Waker::noop());
            let next =
                all.poll(&mut cx, |_| Poll::Ready(Some(Ok::<_, ()>(Frame::data(Bytes::from_static(b"a"))))));
            let Poll::Ready(Some(Ok(frame))) = next else { panic!("no part") };
            assert_eq!(frame.into_data().unwrap(), "a");
            assert_eq!(*seen.borrow(), "a");
            all.end_unchanged();
            all.end_unchanged();
            assert!(all.is_end(), "the receiver need not ask once more");
            assert_eq!(*seen.borrow(), "a.");
        }
        let mut changing = Filters::default();
        changing.push(Box::<Echo>::default(), &"echo".parse().unwrap(), &Outcomes::new(&[], 1));
        changing.end_unchanged();
        assert!(changing.may_change() && !changing.is_end());
    }

    #[test]
    fn a_filter_that_panics_ends_the_body() {
        assert_eq!(filtered(&["a", "panic"], 1), ["a", "plugin echo panicked"]);
    }
}
