//! How long the tasks of one container run, where many containers share a process.
//!
//! A [`Meter`] counts the time during which a worker thread is inside its futures: processor time, but for what the
//! operating system takes in between. Tasks begun by a metered task count too where they are begun with [`inherit`].

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

thread_local! {
    /// The meter of the future that this thread is inside of.
    static CURRENT: RefCell<Option<Arc<Meter>>> = const { RefCell::new(None) };
}

/// Counts time.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// All the time so far.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// `future`, counted.
    pub fn count<F: Future>(self: &Arc<Self>, future: F) -> Metered<F> {
        Metered { meter: Some(Arc::clone(self)), future: Box::pin(future) }
    }
}

/// `future`, counted where the one that began it is.
pub fn inherit<F: Future>(future: F) -> Metered<F> {
    Metered { meter: CURRENT.with_borrow(Clone::clone), future: Box::pin(future) }
}

/// A future whose time counts.
#[must_use = "futures do nothing unless polled"]
pub struct Metered<F> {
    meter: Option<Arc<Meter>>,
    future: Pin<Box<F>>,
}

/// Puts the outer meter back, also when a future panics.
struct Restore<'a>(Option<Arc<Meter>>, &'a Meter, Instant);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.2.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.1.0.fetch_add(nanos, Ordering::Relaxed);
        CURRENT.set(self.0.take());
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let Some(meter) = &this.meter else { return this.future.as_mut().poll(context) };
        // Inside itself it counts already.
        let known = CURRENT.with_borrow(|current| current.as_ref().is_some_and(|known| Arc::ptr_eq(known, meter)));
        if known {
            return this.future.as_mut().poll(context);
        }
        let _restore = Restore(CURRENT.replace(Some(Arc::clone(meter))), meter, Instant::now());
        this.future.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin() {
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {}
    }

    #[tokio::test]
    async fn what_is_waited_for_does_not_count_and_what_is_begun_does() {
        let meter = Arc::new(Meter::default());
        let counted = meter.count(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            spin();
            // Once, though it is inside.
            inherit(async { spin() }).await;
            tokio::spawn(inherit(async { spin() })).await.unwrap();
            tokio::spawn(async { spin() }).await.unwrap();
        });
        counted.await;
        let total = meter.total();
        // Three turns of 20 ms, longer where a busy machine lets them wait; never the second that was slept.
        assert!(total >= Duration::from_millis(60) && total < Duration::from_millis(900), "{total:?}");
        inherit(async { spin() }).await;
        assert_eq!(meter.total(), total);
    }
}
