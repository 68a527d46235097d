//! Futures of one request that run at the same time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Runs futures at the same time, and returns their outputs in the same order.
pub(super) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_future_does_not_wait_for_an_earlier_one() {
        let (sender, receiver) = oneshot::channel();
        let mut sender = Some(sender);
        let futures: Vec<Pin<Box<dyn Future<Output = u32>>>> = vec![
            Box::pin(async { receiver.await.unwrap() }),
            Box::pin(async { sender.take().unwrap().send(1).map(|()| 2).unwrap() }),
        ];
        assert_eq!(all(futures).await, [1, 2]);
        assert_eq!(all(Vec::<std::future::Ready<u32>>::new()).await, [0; 0]);
    }
}
