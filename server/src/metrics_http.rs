//! `GET /metrics` on a port of its own, so that a saturated gRPC port cannot hide the reason why.

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use tokio::net::TcpListener;

use crate::metrics::Recorder;

/// Answers scrapes until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, recorder: Recorder) {
    let scrape = move || {
        let text = recorder.render();
        async move {
            (
                [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                text,
            )
        }
    };
    let router = Router::new().route("/metrics", get(scrape));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}
