//! What the checks know of locks: who takes them where, and in what order.
//!
//! Order is a matter of classes: locks that one line makes, or that were given one name, have the same place in it, so that a
//! mistake shows on the second device even if no two threads ever met on one. Two locks of one class are told apart among
//! themselves, so that a table of them may be locked in the order of its indices. What a handler takes is a matter of the lock
//! itself, since that is of one domain.
//!
//! A taking that is known allocates nothing; the first at a place, and the first after another class, does.

use super::checks::{are_checked, in_handler_of, off, report};
use super::sync::lock;
use super::violation::{Place, Rule};
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Places remembered of one lock.
const KEPT: usize = 64;

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

/// By what was held: what was taken then.
static ORDER: Mutex<Option<HashMap<Node, HashMap<Node, Taken>>>> = Mutex::new(None);

/// What locks have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// The line that made them.
    Made(Place),
    Named(&'static str),
}

/// What has a place in the order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Class(Class),
    /// Among those of its own class.
    One(u64),
}

/// How one was first taken after another.
#[derive(Clone)]
struct Taken {
    held_at: Place,
    at: Place,
    stack: Arc<Backtrace>,
}

/// A lock that this thread has, or waits for.
#[derive(Clone, Copy)]
struct Held {
    id: u64,
    class: Class,
    at: Place,
}

/// One lock.
pub(super) struct LockCheck {
    id: u64,
    class: Class,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    /// Taken in a handler of this domain.
    in_handler: Vec<(u64, Place)>,
    /// Taken elsewhere, with these domains' interrupts off.
    outside: Vec<(Vec<u64>, Place)>,
}

/// The lock is held by this thread, or about to be.
pub(super) struct Hold(u64);

impl LockCheck {
    pub(super) fn new(class: Class) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), class, uses: Mutex::default() }
    }

    /// Called before the lock is waited for, so that a deadlock is reported and not only met.
    #[cold]
    pub(super) fn before(&self, at: Place) -> Option<Hold> {
        if !are_checked() {
            return None;
        }
        self.check_handlers(at);
        // One by one: a report is written to a log, whose writer may take locks.
        for held in (0..).map_while(held) {
            if held.id == self.id {
                let held_at = held.at;
                let text = || format!("a lock is taken at {at} by the thread that took it at {held_at}");
                report(Rule::TakenTwice, at, Some(held_at), text);
            } else {
                self.check_order(held, at);
            }
        }
        let it = Held { id: self.id, class: self.class, at };
        HELD.try_with(|held| held.borrow_mut().push(it)).ok()?;
        Some(Hold(self.id))
    }

    fn check_handlers(&self, at: Place) {
        let mut uses = lock(&self.uses);
        let clash = match in_handler_of() {
            Some(domain) => {
                if uses.in_handler.len() < KEPT && !uses.in_handler.contains(&(domain, at)) {
                    uses.in_handler.push((domain, at));
                }
                uses.outside.iter().find(|(off, _)| !off.contains(&domain)).map(|(_, outside)| (*outside, at))
            }
            None => {
                let may_come = |domain: u64| off().all(|off| off != domain);
                let clash =
                    uses.in_handler.iter().find(|(domain, _)| may_come(*domain)).map(|(_, inside)| (at, *inside));
                let known = |(known, place): &(Vec<u64>, Place)| *place == at && known.iter().copied().eq(off());
                if uses.outside.len() < KEPT && !uses.outside.iter().any(known) {
                    uses.outside.push((off().collect(), at));
                }
                clash
            }
        };
        drop(uses);
        if let Some((outside, inside)) = clash {
            report(Rule::UnsafeInHandler, outside, Some(inside), || {
                format!(
                    "a lock is taken at {outside} with interrupts on, and at {inside} in a handler, which may interrupt \
                     its holder and wait for it; use an IrqLock of the handler's domain"
                )
            });
        }
    }

    fn check_order(&self, held: Held, at: Place) {
        let (before, this) = if held.class == self.class {
            (Node::One(held.id), Node::One(self.id))
        } else {
            (Node::Class(held.class), Node::Class(self.class))
        };
        let mut order = lock(&ORDER);
        let known = order.get_or_insert_default();
        let after = known.entry(before).or_default();
        if after.contains_key(&this) {
            return;
        }
        // Whatever the environment says of backtraces: a report with one stack is half a report.
        let stack = Arc::new(Backtrace::force_capture());
        after.insert(this, Taken { held_at: held.at, at, stack: Arc::clone(&stack) });
        let inverse = path(known, this, before);
        drop(order);
        if let Some(Taken { held_at: theirs_held, at: theirs, stack: their_stack }) = inverse {
            let held_at = held.at;
            report(Rule::LockOrder, at, Some(theirs), || {
                format!(
                    "locks are taken in both orders: at {at} while holding the one taken at {held_at}, and at {theirs} \
                     while holding the one taken at {theirs_held}\nfirst stack:\n{their_stack}\nsecond stack:\n{stack}"
                )
            });
        }
    }
}

/// The lock that this thread took as its `index`th of those that it has. None in a thread that is nearly gone.
fn held(index: usize) -> Option<Held> {
    HELD.try_with(|held| held.borrow().get(index).copied()).ok().flatten()
}

/// The first step of a way from one to another, through locks that were taken while the one before was held.
fn path(order: &HashMap<Node, HashMap<Node, Taken>>, from: Node, to: Node) -> Option<Taken> {
    let first = order.get(&from)?;
    first
        .iter()
        .find(|(next, _)| **next == to || reaches(order, **next, to, &mut vec![from]))
        .map(|(_, taken)| taken.clone())
}

fn reaches(order: &HashMap<Node, HashMap<Node, Taken>>, from: Node, to: Node, seen: &mut Vec<Node>) -> bool {
    if seen.contains(&from) {
        return false;
    }
    seen.push(from);
    order.get(&from).is_some_and(|after| after.keys().any(|next| *next == to || reaches(order, *next, to, seen)))
}

impl Drop for LockCheck {
    /// Its class stays.
    fn drop(&mut self) {
        if let Some(order) = lock(&ORDER).as_mut() {
            let it = Node::One(self.id);
            order.remove(&it);
            let of_one = order.iter_mut().filter(|(node, _)| matches!(node, Node::One(_)));
            of_one.for_each(|(_, after)| drop(after.remove(&it)));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _gone = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            if let Some(index) = held.iter().rposition(|held| held.id == self.0) {
                held.remove(index);
            }
        });
    }
}
