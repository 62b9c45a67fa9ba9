//! What can be asked of the CA's admin API: one action for each RPC, by the RPC's own name, and one for what is more than its RPC.

/// Each with its name and the whole list, of one list.
macro_rules! actions {
    ($($name:ident),* $(,)?) => {
        /// An RPC of `hoplite.ca.v1.Admin`. One that is not here is refused to everybody. `RegisterNestedCa` is no RPC: it is asked
        /// besides the RPC's own action, where an entry of a nested CA is touched.
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
    RegisterNestedCa,
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

    /// Whether it touches entries.
    pub(crate) fn changes_entries(self) -> bool {
        matches!(
            self,
            Self::CreateEntries | Self::UpdateEntries | Self::ApplyEntries | Self::DeleteEntries
        )
    }

    /// Whether it is an RPC.
    pub(crate) fn is_rpc(self) -> bool {
        self != Self::RegisterNestedCa
    }

    /// That of a request's path; `None` for an RPC that is not known here.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        let method = path.strip_prefix(SERVICE)?;
        let found = Self::ALL.iter().copied().find(|action| action.name() == method);
        found.filter(|action| action.is_rpc())
    }
}
