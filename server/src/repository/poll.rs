//! Following the repository's folder (`--model-control poll`): new and changed models are loaded,
//! models whose folder is gone are unloaded. Plain looking, because notifications do not cross
//! network file systems and container mounts.

use std::{sync::Arc, time::Duration};

use super::Registry;

/// Looks at the folder every `interval` until the server stops.
pub async fn follow(registry: Arc<Registry>, interval: Duration) {
    while !registry.stopping() {
        tokio::time::sleep(interval).await;
        let names = match registry.names_on_disk() {
            Ok(names) => names,
            Err(error) => {
                // A folder that is away for a moment must not take every model down.
                tracing::error!(%error, "repository cannot be listed");
                continue;
            }
        };
        for name in registry.names_known() {
            if !names.contains(&name) {
                registry.forget(&name).await;
            }
        }
        for name in names {
            if registry.is_stale(&name) {
                // A failure is logged and shown in the index; the next change tries again.
                let _ = registry.load(&name, None).await;
            }
        }
    }
}
