//! What is asked of the CA about the mesh, once or again and again.

use std::process::ExitCode;
use std::time::Duration;

use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::{Goal, ListReportsRequest, Mesh, NodeReport, ShowMeshRequest, ShowReportRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::command::reach::CaArgs;
use crate::output::{Reader, failed, failure};

/// Nobody can tell, because the CA cannot be asked or has not heard enough yet.
pub(crate) const CANNOT_TELL: u8 = 3;

/// A CA that was away is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// The mesh, and nodes of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) mesh: Mesh,
    pub(crate) nodes: Vec<NodeReport>,
}

/// Asks, and shows what came; again each second if it is watched. The exit code is that of the last answer. When it cannot be
/// asked that is said, and the code is 3.
pub(crate) fn ask(
    ca: &CaArgs,
    reports: &ListReportsRequest,
    watch: bool,
    mut show: impl FnMut(&Seen) -> anyhow::Result<(ExitCode, Reader)>,
) -> anyhow::Result<ExitCode> {
    loop {
        let mut shown = Ok((ExitCode::from(CANNOT_TELL), Reader::There));
        let named = &reports.node;
        let asked = ca.call(async |mut ca: AdminClient<Channel>| {
            let request = ShowMeshRequest { watch, goal: None };
            let mut meshes = ca.show_mesh(request).await?.into_inner();
            while let Some(mesh) = meshes.message().await? {
                let nodes = list(&mut ca, reports.clone()).await?;
                // A name that nobody has must not read like a node that is well.
                if nodes.is_empty() && !named.is_empty() && !is_there(&mut ca, named).await? {
                    failed(
                        &format!("no node has `{named}` in its name; `hoplite fleet` lists them"),
                        CANNOT_TELL,
                    );
                    shown = Ok((ExitCode::from(CANNOT_TELL), Reader::There));
                    continue;
                }
                shown = show(&Seen { mesh, nodes });
                if !matches!(shown, Ok((_, Reader::There))) {
                    return Ok(());
                }
            }
            Ok(())
        });
        let (code, reader) = shown?;
        match asked {
            Ok(()) if !watch || reader == Reader::Gone => return Ok(code),
            Ok(()) => {}
            Err(error) => {
                failure(&error, CANNOT_TELL);
                if !watch {
                    return Ok(ExitCode::from(CANNOT_TELL));
                }
            }
        }
        std::thread::sleep(AGAIN);
    }
}

async fn is_there(ca: &mut AdminClient<Channel>, node: &str) -> Result<bool, Status> {
    let request = ListReportsRequest {
        node: node.to_owned(),
        limit: 1,
        ..ListReportsRequest::default()
    };
    Ok(!list(ca, request).await?.is_empty())
}

/// What some nodes said.
pub(crate) async fn list(
    ca: &mut AdminClient<Channel>,
    request: ListReportsRequest,
) -> Result<Vec<NodeReport>, Status> {
    let mut answers = ca.list_reports(request).await?.into_inner();
    let mut nodes = Vec::new();
    while let Some(node) = answers.message().await? {
        nodes.push(node);
    }
    Ok(nodes)
}

/// What one node said.
pub(crate) fn one(ca: &CaArgs, node: &str) -> anyhow::Result<NodeReport> {
    ca.call(async |mut ca: AdminClient<Channel>| {
        let request = ShowReportRequest { node: node.to_owned() };
        Ok(ca.show_report(request).await?.into_inner())
    })
}

/// What every node said: none where the CA is older than reports.
pub(crate) fn everything(ca: &CaArgs, fired: bool) -> anyhow::Result<Option<Vec<NodeReport>>> {
    ca.call(async |mut ca: AdminClient<Channel>| {
        let request = ListReportsRequest {
            fired,
            ..ListReportsRequest::default()
        };
        if_known(list(&mut ca, request).await)
    })
}

/// Who follows a goal: none where the CA is older than reports.
pub(crate) fn following(ca: &CaArgs, goal: Goal) -> anyhow::Result<Option<Mesh>> {
    ca.call(async |mut ca: AdminClient<Channel>| {
        let request = ShowMeshRequest {
            watch: false,
            goal: Some(goal),
        };
        let mesh = async { ca.show_mesh(request).await?.into_inner().message().await };
        Ok(if_known(mesh.await)?.flatten())
    })
}

fn if_known<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status),
    }
}
