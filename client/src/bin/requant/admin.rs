//! The commands about the server rather than about data: its models, their statistics, its health.

use requant_client::{Client, Code, Error, ServingStatus, proto::StatisticDuration};

use crate::{failure::Failure, print};

/// `requant models`
pub(crate) async fn models(client: &Client) -> Result<String, Failure> {
    let mut rows = vec![["NAME", "VERSION", "STATE", "REASON"].map(str::to_owned)];
    for model in client.index(false).await? {
        rows.push([model.name, model.version, model.state, model.reason]);
    }
    Ok(print::table(&rows))
}

/// `requant load NAME`
pub(crate) async fn load(client: &Client, name: &str) -> Result<String, Failure> {
    client.load(name, None).await?;
    Ok(format!("{name} is loaded\n"))
}

/// `requant unload NAME`
pub(crate) async fn unload(client: &Client, name: &str) -> Result<String, Failure> {
    client.unload(name).await?;
    Ok(format!("{name} is unloaded\n"))
}

/// `requant stats [NAME]`; times are means in microseconds.
pub(crate) async fn stats(client: &Client, name: Option<&str>) -> Result<String, Failure> {
    let heading = [
        "NAME",
        "VERSION",
        "SAMPLES",
        "BATCHES",
        "OK",
        "FAILED",
        "TOTAL_US",
        "QUEUE_US",
        "COMPUTE_US",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    for model in client.statistics(name.unwrap_or_default(), "").await? {
        let requests = model.inference_stats.unwrap_or_default();
        let count = |duration: &Option<StatisticDuration>| duration.unwrap_or_default().count;
        rows.push([
            model.name,
            model.version,
            model.inference_count.to_string(),
            model.execution_count.to_string(),
            count(&requests.success).to_string(),
            count(&requests.fail).to_string(),
            mean(requests.success),
            mean(requests.queue),
            mean(requests.compute_infer),
        ]);
    }
    Ok(print::table(&rows))
}

/// `requant health`
pub(crate) async fn health(client: &Client) -> Result<String, Failure> {
    let live = client.server_live().await?;
    let ready = client.server_ready().await?;
    let status = match client.health("").await {
        Ok(ServingStatus::Unknown) => "UNKNOWN",
        Ok(ServingStatus::Serving) => "SERVING",
        Ok(ServingStatus::NotServing) => "NOT_SERVING",
        Ok(ServingStatus::ServiceUnknown) => "SERVICE_UNKNOWN",
        Err(Error::Status {
            code: Code::Unimplemented,
            ..
        }) => "not implemented",
        Err(error) => return Err(error.into()),
    };
    let text = format!("live: {live}\nready: {ready}\nhealth: {status}\n");
    if live && ready {
        return Ok(text);
    }
    Err(Failure::Server(format!(
        "not ready ({})",
        text.trim_end().replace('\n', ", ")
    )))
}

fn mean(duration: Option<StatisticDuration>) -> String {
    let StatisticDuration { count, ns } = duration.unwrap_or_default();
    if count == 0 {
        return "-".to_owned();
    }
    format!("{:.1}", ns as f64 / count as f64 / 1e3)
}
