//! What can be asked of the CA's admin API: one action for each RPC, by the RPC's own name.

/// Each with its name and the whole list, of one list.
macro_rules! actions {
    ($($name:ident),* $(,)?) => {
        /// An RPC of `hoplite.ca.v1.Admin`. One that is not here is refused to everybody.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Action {
            $($name,)*
        }

        impl Action {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As in the protobuf file and in policies.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

actions! {
    ActivateAuthority,
    AddFederation,
    AddGrant,
    ApplyEntries,
    BackUp,
    BanAgent,
    BanOperator,
    ClearShadow,
    CreateEntries,
    CreateOperatorToken,
    CreateToken,
    DeleteEntries,
    DeleteFederation,
    DeleteFederationSet,
    DeleteToken,
    EvictAgent,
    GetPolicy,
    ListAgents,
    ListAuthorities,
    ListEntries,
    ListFederations,
    ListGrants,
    ListOperators,
    ListPolicies,
    ListReports,
    ListSigners,
    ListTokens,
    PrepareAuthority,
    PublishPolicy,
    PublishSigners,
    PutFederationSet,
    RefreshFederation,
    RemoveOperator,
    RenewOperator,
    RevokeAuthority,
    RevokeGrant,
    SetForeignBundle,
    ShowBundle,
    ShowForeignBundle,
    ShowMesh,
    ShowPolicy,
    ShowReport,
    SignOut,
    TaintAuthority,
    UpdateEntries,
    WhoAmI,
}

/// Where the admin API lies.
pub(crate) const SERVICE: &str = "/hoplite.ca.v1.Admin/";

impl Action {
    /// Whether it only looks. Every other one is written down.
    pub(crate) fn only_looks(self) -> bool {
        let name = self.name();
        self == Self::WhoAmI || ["Get", "List", "Show"].iter().any(|verb| name.starts_with(verb))
    }

    /// That of a request's path; `None` for an RPC that is not known here.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        let method = path.strip_prefix(SERVICE)?;
        Self::ALL.iter().copied().find(|action| action.name() == method)
    }
}
