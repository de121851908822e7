use super::*;
pub(super) async fn run(_source: std::path::PathBuf, _data_plane: Arc<dyn DataPlane>, _status: watch::Sender<Status>, shutdown: CancellationToken) -> Result<(), StartError> {
    shutdown.cancelled().await;
    Ok(())
}
