//! The filters of plugins that a body passes.
//!
//! A body passes stage by stage: only the last stage before which something waits takes a step, and only when its filter is ready.
//! So behind a filter that waits nothing piles up: before each stage there is at most what the one before has put out in one step, and
//! the source is read when nothing waits before any stage.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker, ready};

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
    /// A pause or the end of the body that is on its way through the stages, behind all parts.
    mark: Option<Mark>,
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
    /// The parts that it has not taken yet.
    waiting: VecDeque<Bytes>,
    plugin: Name,
    outcomes: Outcomes,
}

/// A pause or the end of a body on its way through the stages.
struct Mark {
    /// The number of the stage that takes it next.
    stage: usize,
    /// The trailers of the body, if this is its end.
    trailers: Option<HeaderMap>,
}

impl Mark {
    fn pause() -> Self {
        Self { stage: 0, trailers: None }
    }

    fn end(trailers: HeaderMap) -> Self {
        Self { stage: 0, trailers: Some(trailers) }
    }
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
            self.mark = Some(Mark::end(HeaderMap::new()));
            // Observers are always ready. A panic is no reason to break off a response that is complete.
            let mut cx = Context::from_waker(Waker::noop());
            let _ = self.poll_steps(&mut cx);
            (self.mark, self.ended) = (None, true);
        }
    }

    fn add(&mut self, filter: Box<dyn BodyFilter>, plugin: &Name, outcomes: &Outcomes) {
        let (waiting, plugin, outcomes) = (VecDeque::new(), plugin.clone(), outcomes.clone());
        self.stages.push(Stage { filter, waiting, plugin, outcomes });
    }

    /// The next part of the body that `source` has.
    pub fn poll<E>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, FilteredError<E>>>> {
        loop {
            let stepped = self.poll_steps(cx);
            if let Poll::Ready(Err(error)) = stepped {
                return Poll::Ready(Some(Err(FilteredError::Filter(error))));
            }
            if let Some(part) = self.passed.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if self.ended {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            if stepped.is_pending() {
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_ready(cx)) {
                return Poll::Ready(Some(Err(FilteredError::Filter(error))));
            }
            match source(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.is_holding = true;
                        self.put_before(0, [data]);
                    }
                    Err(frame) => self.mark = Some(Mark::end(frame.into_trailers().unwrap_or_default())),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(FilteredError::Source(error)))),
                Poll::Ready(None) => self.mark = Some(Mark::end(HeaderMap::new())),
                Poll::Pending if std::mem::take(&mut self.is_holding) => self.mark = Some(Mark::pause()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// True if the head of the response waits for the first part of the body.
    pub fn hold_head(&self) -> bool {
        self.stages.iter().any(|stage| stage.filter.holds_head())
    }

    /// Lets the filters change the head that has waited.
    pub fn finish_head(&mut self, head: &mut response::Parts) -> Result<(), FilterError> {
        for Stage { filter, plugin, outcomes, .. } in &mut self.stages {
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

    /// Ready when all filters are: before that nothing more is read.
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

    /// Takes steps until nothing waits before any stage.
    fn poll_steps(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        while ready!(self.poll_step(cx))? {}
        Poll::Ready(Ok(()))
    }

    /// Takes a step with the last stage before which something waits, once its filter is ready. The mark waits behind all parts.
    /// `false`: nothing waits.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, FilterError>> {
        if let Some(number) = self.stages.iter().rposition(|stage| !stage.waiting.is_empty()) {
            let Some(stage) = self.stages.get_mut(number) else { return Poll::Ready(Ok(false)) };
            let Stage { filter, waiting, plugin, outcomes } = stage;
            let mut out = ready!(step(filter, plugin, outcomes, cx, |filter, out| {
                waiting.pop_front().map_or(Ok(()), |part| filter.on_data(part, out))
            }))?;
            self.put_before(number + 1, out.take());
            return Poll::Ready(Ok(true));
        }
        let Some(mark) = &mut self.mark else { return Poll::Ready(Ok(false)) };
        let Some(stage) = self.stages.get_mut(mark.stage) else {
            if let Some(trailers) = self.mark.take().and_then(|mark| mark.trailers) {
                self.ended = true;
                self.trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
            }
            return Poll::Ready(Ok(true));
        };
        let (Stage { filter, plugin, outcomes, .. }, trailers) = (stage, &mut mark.trailers);
        let mut out = ready!(step(filter, plugin, outcomes, cx, |filter, out| {
            match trailers {
                Some(trailers) => filter.on_end(trailers, out),
                None => filter.on_pause(out),
            }
        }))?;
        mark.stage += 1;
        let next = mark.stage;
        self.put_before(next, out.take());
        Poll::Ready(Ok(true))
    }

    /// Puts parts before the stage of this number; behind the last one they have passed.
    fn put_before(&mut self, number: usize, parts: impl IntoIterator<Item = Bytes>) {
        match self.stages.get_mut(number) {
            Some(stage) => stage.waiting.extend(parts),
            None => self.passed.extend(parts),
        }
    }
}

/// Calls a filter once it is ready. Returns its output.
fn step(
    filter: &mut Box<dyn BodyFilter>,
    plugin: &Name,
    outcomes: &Outcomes,
    cx: &mut Context<'_>,
    call: impl FnOnce(&mut dyn BodyFilter, &mut Output) -> Result<(), Abort>,
) -> Poll<Result<Output, FilterError>> {
    let mut out = Output::default();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let is_ready = filter.poll_ready(cx).is_ready();
        is_ready.then(|| call(&mut **filter, &mut out))
    }));
    match ran {
        Ok(None) => Poll::Pending,
        Ok(Some(Ok(()))) => Poll::Ready(Ok(out)),
        Ok(Some(Err(abort))) => Poll::Ready(Err(FilterError::Aborted(plugin.clone(), abort))),
        Err(_) => Poll::Ready(Err(panicked(plugin, outcomes))),
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
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use http::StatusCode;
    use signalbox_plugin::Reply;

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

    /// Keeps everything until the end.
    #[derive(Default)]
    struct Collector(Vec<Bytes>);

    impl BodyFilter for Collector {
        fn on_data(&mut self, data: Bytes, _: &mut Output) -> Result<(), Abort> {
            self.0.push(data);
            Ok(())
        }

        fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
            trailers.insert("x-collected", self.0.len().into());
            self.0.drain(..).for_each(|part| out.push(part));
            Ok(())
        }
    }

    /// Waits for a permit for each part, which it puts out when it has got it.
    struct Waiter {
        permits: Rc<Cell<usize>>,
        held: Option<Bytes>,
    }

    impl Waiter {
        fn let_go(&mut self, out: &mut Output) -> Result<(), Abort> {
            let Some(part) = self.held.take() else { return Ok(()) };
            self.permits.set(self.permits.get().checked_sub(1).expect("it was asked whether it is ready"));
            if part == "abort" {
                return Err(Abort::new("as told", Reply::problem(StatusCode::CONFLICT, "no")));
            }
            out.push(part);
            Ok(())
        }
    }

    impl BodyFilter for Waiter {
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
            if self.held.is_none() || self.permits.get() > 0 { Poll::Ready(()) } else { Poll::Pending }
        }

        fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
            self.let_go(out)?;
            self.held = Some(data);
            Ok(())
        }

        fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
            self.let_go(out)
        }

        fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
            trailers.insert("x-waited", 1.into());
            self.let_go(out)
        }
    }

    /// A chain of filters over parts that are all there, and the permits of those that wait.
    struct Chain {
        filters: Filters,
        permits: Rc<Cell<usize>>,
        parts: VecDeque<&'static str>,
        read: usize,
    }

    impl Chain {
        fn of(parts: &[&'static str]) -> Self {
            let (permits, parts) = (Rc::default(), parts.iter().copied().collect());
            Self { filters: Filters::default(), permits, parts, read: 0 }
        }

        fn then(mut self, filter: impl BodyFilter + 'static) -> Self {
            self.filters.push(Box::new(filter), &"test".parse().unwrap(), &Outcomes::new(&[], 1));
            self
        }

        fn then_waits(self) -> Self {
            let permits = Rc::clone(&self.permits);
            self.then(Waiter { permits, held: None })
        }

        /// Returns what comes out until the chain waits, with this many more permits.
        fn passes(&mut self, permits: usize) -> Vec<String> {
            self.permits.set(self.permits.get() + permits);
            let mut cx = Context::from_waker(Waker::noop());
            let mut seen = Vec::new();
            loop {
                let (parts, read) = (&mut self.parts, &mut self.read);
                let next = self.filters.poll(&mut cx, |_| {
                    *read += 1;
                    let part = parts.pop_front().map(|part| Bytes::from_static(part.as_bytes()));
                    Poll::Ready(part.map(|part| Ok::<_, ()>(Frame::data(part))))
                });
                match next {
                    Poll::Pending => return seen,
                    Poll::Ready(None) => {
                        assert!(self.filters.is_end());
                        seen.push("end".to_owned());
                        return seen;
                    }
                    Poll::Ready(Some(Ok(frame))) => seen.push(match frame.into_data() {
                        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                        Err(frame) => {
                            let mut names: Vec<_> =
                                frame.trailers_ref().unwrap().keys().map(|name| name.to_string()).collect();
                            names.sort_unstable();
                            names.join(" ")
                        }
                    }),
                    Poll::Ready(Some(Err(FilteredError::Filter(error)))) => {
                        seen.push(error.to_string());
                        return seen;
                    }
                    Poll::Ready(Some(Err(FilteredError::Source(())))) => panic!("the source has no errors"),
                }
            }
        }
    }

    #[test]
    fn a_filter_behind_one_that_puts_out_all_at_its_end_waits_for_each_part() {
        let mut chain = Chain::of(&["a", "b", "c"]).then(Collector::default()).then_waits();
        assert!(chain.passes(0).is_empty());
        assert_eq!(chain.read, 4, "the parts and their end");
        assert_eq!(chain.passes(1), ["a"]);
        assert!(chain.passes(0).is_empty());
        assert_eq!(chain.passes(1), ["b"]);
        assert_eq!(chain.passes(1), ["c", "x-collected x-waited", "end"]);
        // The end passes filters that wait, too, one behind the other.
        let chain = Chain::of(&["a", "b"]).then(Collector::default()).then_waits().then(Collector::default());
        let mut chain = chain.then_waits();
        assert!(chain.passes(2).is_empty());
        assert_eq!(chain.passes(1), ["a"]);
        assert_eq!(chain.passes(1), ["b", "x-collected x-waited", "end"]);
        assert_eq!(Chain::of(&[]).then_waits().passes(0), ["x-waited", "end"]);
    }

    #[test]
    fn a_filter_that_waits_holds_up_those_before_it_and_the_source() {
        let mut chain = Chain::of(&["a", "b", "c"]).then(Echo::default()).then_waits();
        assert!(chain.passes(0).is_empty());
        assert_eq!(chain.read, 1, "nothing is read while a filter waits");
        assert_eq!(chain.passes(1), ["a"]);
        assert_eq!(chain.read, 2);
        assert_eq!(chain.passes(9), ["b", "c", "a", "b", "c", "x-echoes x-waited", "end"]);
        assert_eq!(chain.permits.get(), 4);
    }

    #[test]
    fn a_filter_that_waits_can_end_the_body_between_and_behind_parts() {
        for parts in [&["a", "abort", "b"][..], &["a", "abort"]] {
            let mut chain = Chain::of(parts).then(Collector::default()).then_waits();
            assert!(chain.passes(0).is_empty());
            assert_eq!(chain.passes(1), ["a"], "{parts:?}");
            assert_eq!(chain.passes(1), ["plugin test ended the body: as told"], "{parts:?}");
        }
    }

    #[test]
    fn a_pause_lets_a_filter_put_out_what_it_has_waited_for() {
        let permits = Rc::<Cell<usize>>::default();
        let mut all = Filters::default();
        let (name, outcomes) = ("test".parse().unwrap(), Outcomes::new(&[], 1));
        all.push(Box::<Echo>::default(), &name, &outcomes);
        all.push(Box::new(Waiter { permits: Rc::clone(&permits), held: None }), &name, &outcomes);
        let mut cx = Context::from_waker(Waker::noop());
        let mut parts = ["a"].into_iter();
        let mut next = |permits_more: usize| {
            permits.set(permits.get() + permits_more);
            let polled = all.poll(&mut cx, |_| match parts.next() {
                Some(part) => {
                    Poll::Ready(Some(Ok::<_, ()>(Frame::data(Bytes::from_static(part.as_bytes())))))
                }
                None => Poll::Pending,
            });
            match polled {
                Poll::Pending => None,
                Poll::Ready(part) => Some(part.unwrap().unwrap().into_data().unwrap()),
            }
        };
        assert!(next(0).is_none());
        assert_eq!(next(1).unwrap(), "a");
        // The echo comes at the pause, which goes on behind it when the permit is there.
        assert!(next(0).is_none());
        assert_eq!(next(1).unwrap(), "a");
        assert!(next(0).is_none());
    }

    #[test]
    fn a_filter_that_panics_ends_the_body() {
        assert_eq!(filtered(&["a", "panic"], 1), ["a", "plugin echo panicked"]);
    }
}
