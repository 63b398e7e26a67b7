//! What keys have used.

use crate::host::{Host, until};
use serde_json::{Value, json};

async fn days(host: &Host, key: &str) -> Vec<Value> {
    host.app.usage.note().await;
    host.ask(key, "GET", "/v1/usage?days=2", None).await.json()["days"].as_array().unwrap().clone()
}

#[tokio::test]
async fn what_a_key_has_used_is_told_to_it_and_to_the_operator() {
    let host = Host::start(&["--api-keys", "pf_live_a,pf_live_b", "--admin-key", "pf_admin_c"]).await;
    let created = host.ask("pf_live_a", "POST", "/v1/sandboxes", Some(&json!({}))).await.json();
    let path = format!("/v1/sandboxes/{}", created["id"].as_str().unwrap());
    for _ in 0..2 {
        host.ask("pf_live_a", "POST", &format!("{path}/exec"), Some(&json!({ "code": "pass" }))).await;
    }
    host.ask("pf_live_a", "DELETE", &path, None).await;
    until("it is noted", async || !days(&host, "pf_live_a").await.is_empty()).await;
    let own = days(&host, "pf_live_a").await;
    assert_eq!((own.len(), &own[0]["sandboxes"], &own[0]["executions"]), (1, &json!(1), &json!(2)));
    assert!(own[0]["day"].as_str().unwrap().starts_with("20"));
    assert_eq!(days(&host, "pf_live_b").await, [] as [Value; 0]);
    // It may have ended between the two.
    let counted = |days: &[Value]| {
        let count = |day: &Value| ["key", "sandboxes", "executions"].map(|name| day[name].clone());
        days.iter().map(count).collect::<Vec<_>>()
    };
    let all = days(&host, "pf_admin_c").await;
    assert_eq!(counted(&all), counted(&own), "members of the pool are nobody's");
}
