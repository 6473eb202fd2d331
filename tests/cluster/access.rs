//! Who may do what.

use serde_json::json;

use crate::support::{namespace, shared};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let cluster = shared().await;
    let space = "access";
    namespace(&cluster, space).await;
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": space}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
             "metadata": {"name": "reader", "namespace": space},
             "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "reader", "namespace": space},
             "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": space}],
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}},
        ]}))
        .await
        .unwrap();
    let token = cluster
        .kubectl(&["create", "token", "reader", "-n", space])
        .await
        .unwrap();
    let token = format!("--token={}", token.trim());
    cluster
        .kubectl(&[&token, "get", "pods", "-n", space])
        .await
        .unwrap();
    for refused in [
        ["get", "secrets", "-n", space],
        ["get", "pods", "-n", "kube-system"],
        ["delete", "pod/any", "-n", space],
    ] {
        let mut arguments = vec![token.as_str()];
        arguments.extend(refused);
        let error = cluster.kubectl(&arguments).await.unwrap_err().to_string();
        assert!(error.contains("Forbidden"), "{arguments:?}: {error}");
    }
}
