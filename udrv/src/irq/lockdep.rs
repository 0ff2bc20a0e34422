//! What the checks know of locks: who takes them where, and in what order.

use super::checks::{are_on, context, report};
use super::sync::lock;
use super::violation::{Place, Rule};
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Places remembered of one lock.
const KEPT: usize = 64;

thread_local! {
    static HELD: RefCell<Vec<(u64, Place)>> = const { RefCell::new(Vec::new()) };
}

/// By the lock that was held: the locks taken then.
static ORDER: Mutex<Option<HashMap<u64, HashMap<u64, Taken>>>> = Mutex::new(None);

/// How one lock was first taken after another.
#[derive(Clone)]
struct Taken {
    held_at: Place,
    at: Place,
    stack: String,
}

/// One lock.
pub(super) struct LockCheck {
    id: u64,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    /// Taken in a handler of this domain.
    in_handler: Vec<(usize, Place)>,
    /// Taken elsewhere, with these domains' interrupts off.
    outside: Vec<(Vec<usize>, Place)>,
}

/// The lock is held by this thread, or about to be.
pub(super) struct Hold(u64);

impl LockCheck {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), uses: Mutex::default() }
    }

    /// Called before the lock is waited for, so that a deadlock is reported and not only met.
    #[cold]
    pub(super) fn before(&self, at: Place) -> Option<Hold> {
        if !are_on() {
            return None;
        }
        self.check_handlers(at);
        let held = HELD.with_borrow(Clone::clone);
        for &(other, held_at) in &held {
            if other == self.id {
                let text = || format!("a lock is taken at {at} by the thread that took it at {held_at}");
                report(Rule::TakenTwice, at, Some(held_at), text);
            } else {
                self.check_order(other, held_at, at);
            }
        }
        HELD.with_borrow_mut(|held| held.push((self.id, at)));
        Some(Hold(self.id))
    }

    fn check_handlers(&self, at: Place) {
        let (off, handler) = context();
        let mut uses = lock(&self.uses);
        let clash = match handler {
            Some(domain) => {
                if uses.in_handler.len() < KEPT && !uses.in_handler.contains(&(domain, at)) {
                    uses.in_handler.push((domain, at));
                }
                uses.outside.iter().find(|(off, _)| !off.contains(&domain)).map(|(_, outside)| (*outside, at))
            }
            None => {
                let clash =
                    uses.in_handler.iter().find(|(domain, _)| !off.contains(domain)).map(|(_, inside)| (at, *inside));
                let known = uses.outside.iter().any(|(known, place)| *place == at && *known == off);
                if uses.outside.len() < KEPT && !known {
                    uses.outside.push((off, at));
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

    fn check_order(&self, other: u64, held_at: Place, at: Place) {
        let mut order = lock(&ORDER);
        let order = order.get_or_insert_default();
        let after = order.entry(other).or_default();
        if after.contains_key(&self.id) {
            return;
        }
        let stack = Backtrace::capture().to_string();
        after.insert(self.id, Taken { held_at, at, stack: stack.clone() });
        if let Some(inverse) = path(order, self.id, other) {
            let Taken { held_at: theirs_held, at: theirs, stack: their_stack } = inverse;
            report(Rule::LockOrder, at, Some(theirs), || {
                format!(
                    "locks are taken in both orders: at {at} while holding the one taken at {held_at}, and at {theirs} \
                     while holding the one taken at {theirs_held}\nfirst stack: {their_stack}\nsecond stack: {stack}"
                )
            });
        }
    }
}

/// The first step of a way from one lock to another, through locks that were taken while the one before was held.
fn path(order: &HashMap<u64, HashMap<u64, Taken>>, from: u64, to: u64) -> Option<Taken> {
    let first = order.get(&from)?;
    first
        .iter()
        .find(|(next, _)| **next == to || reaches(order, **next, to, &mut vec![from]))
        .map(|(_, taken)| taken.clone())
}

fn reaches(order: &HashMap<u64, HashMap<u64, Taken>>, from: u64, to: u64, seen: &mut Vec<u64>) -> bool {
    if seen.contains(&from) {
        return false;
    }
    seen.push(from);
    order.get(&from).is_some_and(|after| after.keys().any(|next| *next == to || reaches(order, *next, to, seen)))
}

impl Drop for LockCheck {
    fn drop(&mut self) {
        if let Some(order) = lock(&ORDER).as_mut() {
            order.remove(&self.id);
            order.values_mut().for_each(|after| drop(after.remove(&self.id)));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if let Some(index) = held.iter().rposition(|(id, _)| *id == self.0) {
                held.remove(index);
            }
        });
    }
}
