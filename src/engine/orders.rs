//! What operators ask of control, from other threads: an order goes to it as an event, its answer comes back by ticket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Sender, bounded};

use crate::limits::ORDER_PATIENCE;
use crate::session::{Event, Order, OrderOutcome};

/// Whoever waits for an answer, by ticket. Bounded by the clients of the stats socket.
#[derive(Default)]
pub struct Waiting(Mutex<HashMap<u64, Sender<OrderOutcome>>>);

impl Waiting {
    /// Whoever has given up waiting is not told.
    pub fn answer(&self, ticket: u64, outcome: OrderOutcome) {
        if let Some(waiting) = self.take(ticket) {
            let _ = waiting.try_send(outcome);
        }
    }

    fn take(&self, ticket: u64) -> Option<Sender<OrderOutcome>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket)
    }
}

/// The way to control for an operator.
#[derive(Clone)]
pub struct Orders {
    events: Sender<Event>,
    waiting: Arc<Waiting>,
    next: Arc<AtomicU64>,
}

impl Orders {
    pub fn new(events: Sender<Event>, waiting: Arc<Waiting>) -> Orders {
        Orders { events, waiting, next: Arc::default() }
    }

    /// Gives the order and waits for what becomes of it. `Err`: one sentence that says why not.
    pub fn give(&self, order: Order) -> OrderOutcome {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = bounded(1);
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, sender);
        let busy = |_| "the recorder is behind with its calls: try again".to_owned();
        let outcome = self
            .events
            .send_timeout(Event::Order { ticket, order }, ORDER_PATIENCE)
            .map_err(|e| e.to_string())
            .and_then(|()| answer.recv_timeout(ORDER_PATIENCE).map_err(busy));
        self.waiting.take(ticket);
        outcome?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_own_answer() {
        let (sender, events) = bounded(4);
        let waiting = Arc::new(Waiting::default());
        let orders = Orders::new(sender, waiting.clone());
        let ask = |id: &str| {
            let (orders, id) = (orders.clone(), id.to_owned());
            std::thread::spawn(move || orders.give(Order::End { id, note: None }))
        };
        let asked = ["a", "b"].map(ask);
        for _ in 0..2 {
            let Ok(Event::Order { ticket, order: Order::End { id, .. } }) = events.recv() else { panic!() };
            waiting.answer(ticket, if id == "a" { Ok(id) } else { Err("no".into()) });
            waiting.answer(ticket, Ok("too late".into()));
        }
        assert_eq!(asked.map(|thread| thread.join().unwrap()), [Ok("a".into()), Err("no".into())]);
        assert!(waiting.0.lock().unwrap().is_empty());
        drop(events);
        assert!(orders.give(Order::End { id: "c".into(), note: None }).is_err(), "control is gone");
    }
}
