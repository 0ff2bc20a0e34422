//! A shorter recording that still fails.

use super::event::{Event, Tag, What};
use std::collections::BTreeMap;
use std::ops::Range;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Candidates tried.
    pub tried: usize,
    /// Events of the shortest that failed.
    pub left: usize,
}

/// The shortest list of events found for which `fails` still says so, which it must of all of them: first the end is cut
/// off, but for the ends of what is still running there, then ever smaller pieces are left out (after Zeller and Hildebrandt's ddmin), until none of one event can be.
/// Names of threads and files stay, and what began and ended on a thread goes with both its ends: without the end all that follows
/// would be taken for a part of it. (An end is missing where the recording has none, or where `fails` wants none.) `fails` may be wrong now and then; what is returned did fail.
///
/// # Errors
/// What `fails` gave.
pub fn minimise<E>(
    events: &[Event],
    mut fails: impl FnMut(&[Event]) -> Result<bool, E>,
    mut tell: impl FnMut(Progress),
) -> Result<Vec<Event>, E> {
    let mut tried = 0;
    let mut attempt = |candidate: &[Event]| {
        tried += 1;
        let failed = fails(candidate)?;
        tell(Progress { tried, left: candidate.len() });
        Ok(failed)
    };
    let mut best = cut(events, &mut attempt)?;
    let mut size = best.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < best.len() {
            let piece = start..best.len().min(start + size);
            let candidate = without(&best, piece);
            if candidate.len() < best.len() && attempt(&candidate)? {
                best = candidate;
                shorter = true;
            } else {
                start += size;
            }
        }
        // What was needed may not be any more, now that something else is gone.
        if !shorter || size > 1 {
            size /= 2;
        }
    }
    Ok(best)
}

/// What is left of the events without a piece of them.
fn without(events: &[Event], piece: Range<usize>) -> Vec<Event> {
    let ends = ends(events);
    let goes = |at: &usize| piece.contains(at) || ends.get(at).is_some_and(|other| piece.contains(other));
    let kept = |(at, event): &(usize, &Event)| event.what.is_name() || !goes(at);
    events.iter().enumerate().filter(kept).map(|(_, event)| event.clone()).collect()
}

/// Where each run of something ends, by where it begins, and the other way round.
fn ends(events: &[Event]) -> BTreeMap<usize, usize> {
    let (mut open, mut ends) = (BTreeMap::<_, Vec<usize>>::new(), BTreeMap::new());
    for (at, event) in events.iter().enumerate() {
        let (kind, begins) = match event.what {
            What::HandlerBegin { .. } => (Tag::HandlerBegin, true),
            What::HandlerEnd { .. } => (Tag::HandlerBegin, false),
            What::ThreadedBegin { .. } => (Tag::ThreadedBegin, true),
            What::ThreadedEnd { .. } => (Tag::ThreadedBegin, false),
            What::BottomHalfBegin { .. } => (Tag::BottomHalfBegin, true),
            What::BottomHalfEnd { .. } => (Tag::BottomHalfBegin, false),
            What::SectionBegin { .. } => (Tag::SectionBegin, true),
            What::SectionEnd { .. } => (Tag::SectionBegin, false),
            _ => continue,
        };
        let begun = open.entry((kind as u8, event.thread)).or_default();
        if begins {
            begun.push(at);
        } else if let Some(begin) = begun.pop() {
            ends.extend([(begin, at), (at, begin)]);
        }
    }
    ends
}

/// The shortest beginning that fails, by halving: what comes after the failure is most of a recording.
fn cut<E>(events: &[Event], attempt: &mut impl FnMut(&[Event]) -> Result<bool, E>) -> Result<Vec<Event>, E> {
    let (mut passes, mut fails) = (0, events.len());
    while fails - passes > 1 {
        let middle = passes + (fails - passes) / 2;
        match events.get(..middle) {
            Some(beginning) if attempt(beginning)? => fails = middle,
            _ => passes = middle,
        }
    }
    let (beginning, rest) = events.split_at_checked(fails).unwrap_or((events, &[]));
    let ends = ends(events);
    let began = |at: usize| ends.get(&at).is_some_and(|begin| *begin < fails);
    // In the order in which they ended, and so the innermost first.
    let missing: Vec<_> = (fails..).zip(rest).filter(|(at, _)| began(*at)).map(|(_, event)| event.clone()).collect();
    let mut ended = beginning.to_vec();
    ended.extend(missing.iter().cloned());
    if missing.is_empty() || attempt(&ended)? {
        return Ok(ended);
    }
    ended.truncate(fails);
    for end in missing {
        ended.push(end);
        if !attempt(&ended)? {
            ended.pop();
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Actor, Actors, Place};
    use std::convert::Infallible;
    use std::time::Duration;
    use udrv_backend::IrqIndex;

    fn event(number: u64) -> Event {
        let what = What::Irq { index: IrqIndex::MSI, vector: number as u32, count: 1 };
        Event { number, time: Duration::from_nanos(number), thread: 1, what }
    }

    fn numbers(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn events_that_it_takes_to_fail_are_what_is_left() {
        let events: Vec<_> = (0..1000).map(event).collect();
        let needed = [17, 18, 400, 731];
        let fails =
            |candidate: &[Event]| Ok::<_, Infallible>(needed.iter().all(|number| numbers(candidate).contains(number)));
        let mut last = Progress { tried: 0, left: 0 };
        let Ok(shortest) = minimise(&events, fails, |progress| last = progress);
        assert_eq!(numbers(&shortest), needed);
        assert!(last.tried < 200, "{last:?}");
    }

    #[test]
    fn names_of_threads_stay_and_an_error_ends_it() {
        let mut events: Vec<_> = (0..10).map(event).collect();
        events[3].what = What::Thread { name: "driver".into() };
        let fails = |candidate: &[Event]| Ok::<_, Infallible>(numbers(candidate).contains(&9));
        let Ok(shortest) = minimise(&events, fails, |_| {});
        assert_eq!(numbers(&shortest), [3, 9]);
        assert_eq!(minimise(&events, |_| Err("no such test"), |_| {}), Err("no such test"));
    }

    #[test]
    fn handler_run_goes_with_both_its_ends_so_that_what_follows_is_the_threads() {
        let (index, vector) = (IrqIndex::MSI, 0);
        let mut events: Vec<_> = (0..40).map(event).collect();
        for begin in [3, 20] {
            events[begin].what = What::HandlerBegin { index, vector };
            events[begin + 5].what = What::HandlerEnd { index, vector, handled: true };
            // Of another thread's run, meanwhile.
            events[begin + 2].what = What::HandlerBegin { index, vector };
            events[begin + 7].what = What::HandlerEnd { index, vector, handled: true };
            events[begin + 2].thread = 2;
            events[begin + 7].thread = 2;
        }
        // It takes a beginning, an access in a run, and one after it that is none of its.
        let fails = |candidate: &[Event]| {
            let mut actors = Actors::default();
            let actors: Vec<_> = candidate.iter().map(|event| (event.number, actors.of(event))).collect();
            let begins = candidate.iter().any(|event| event.number == 20);
            Ok::<_, Infallible>(begins && actors.contains(&(21, Actor::Handlers)) && actors.iter().any(|of| of.0 == 39))
        };
        let Ok(shortest) = minimise(&events, fails, |_| {});
        assert_eq!(numbers(&shortest), [20, 21, 25, 39], "the end is as needed as the beginning");
        let mut actors = Actors::default();
        assert_eq!(shortest.iter().map(|event| actors.of(event)).last(), Some(Actor::Thread(1)));
    }

    /// A recording in which 20 fails: in a section of a handler of thread 1, while another runs on thread 2.
    fn failing_in_a_handler() -> Vec<Event> {
        let (index, vector, domain) = (IrqIndex::MSI, 0, 0);
        let mut events: Vec<_> = (0..40).map(event).collect();
        for (begin, end, thread) in [(3, 6, 1), (15, 30, 1), (16, 25, 2), (32, 35, 1)] {
            events[begin].what = What::HandlerBegin { index, vector };
            events[end].what = What::HandlerEnd { index, vector, handled: true };
            (events[begin].thread, events[end].thread) = (thread, thread);
        }
        events[17].what = What::SectionBegin { domain, at: Place { file: 0, line: 1 } };
        events[28].what = What::SectionEnd { domain };
        events
    }

    #[test]
    fn handler_that_was_running_at_the_failure_ends_behind_it() {
        let fails = |candidate: &[Event]| {
            let numbers = numbers(candidate);
            // A run after the failure comes back with neither end.
            assert!(!numbers.contains(&35) || numbers.contains(&32), "{numbers:?}");
            assert!(!numbers.contains(&32) || numbers.contains(&31), "{numbers:?}");
            Ok::<_, Infallible>([15, 17, 20].iter().all(|number| numbers.contains(number)))
        };
        let Ok(shortest) = minimise(&failing_in_a_handler(), fails, |_| {});
        assert_eq!(numbers(&shortest), [15, 17, 20, 28, 30], "what ran on the other thread is needed by neither end");
    }

    #[test]
    fn handler_has_no_end_where_it_only_fails_without_or_the_recording_has_none() {
        let whole = failing_in_a_handler();
        let fails = |candidate: &[Event]| {
            let numbers = numbers(candidate);
            Ok::<_, Infallible>(
                numbers.contains(&15) && numbers.contains(&20) && (!numbers.contains(&30) || numbers.contains(&39)),
            )
        };
        let Ok(shortest) = minimise(&whole, fails, |_| {});
        assert_eq!(numbers(&shortest), [15, 20]);
        let but_for_one =
            |candidate: &[Event]| Ok::<_, Infallible>(fails(candidate)? && numbers(candidate).contains(&17));
        let Ok(shortest) = minimise(&whole, but_for_one, |_| {});
        assert_eq!(numbers(&shortest), [15, 17, 20, 28], "one end that may not be there takes no other along");
        let needs_begin =
            |candidate: &[Event]| Ok::<_, Infallible>([15, 20].iter().all(|of| numbers(candidate).contains(of)));
        let Ok(shortest) = minimise(&whole[..26], needs_begin, |_| {});
        assert_eq!(numbers(&shortest), [15, 20]);
    }
}
