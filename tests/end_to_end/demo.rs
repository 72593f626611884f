//! The README's first command, checked against amounts worked out by hand.

use crate::engine::{ok, sql};

/// September 2026 in London has 30 days of 24 hours.
///
/// acme, standard: office 1.01 at 450.00; office 1.02 at 520.00 from the 16th, 15 of 30 days: 260.00. 240 calls, 100
/// included: 140 × 0.85 = 119.00. 30 × 40 = 1,200 pages, 500 included: 700 × 0.04 = 28.00. Rooms 8 × 1.5 = 12 hours,
/// above 10 all at 20.00: 240.00. Together 1,097.00.
/// birch, standard: office 450.00; 80 calls and 300 pages are included; rooms 4 × 2 = 8 hours at 25.00: 200.00.
/// cedar, standard: office until the 10th, 10 of 30 days of 450.00: 150.00; room 1.25 hours at 25.00: 31.25.
/// lumen, large: three offices at 380.00: 1,140.00; 900 calls, 300 included: 600 × 0.70 = 420.00; 3,600 pages, 2,000
/// included: 1,600 × 0.03 = 48.00; rooms 20 hours at 18.00: 360.00. Together 1,968.00.
/// Late: 2.5 hours more for acme: 14.5 × 20.00 = 290.00 in place of 240.00, and 1,147.00 in all.
#[test]
fn the_demo_bills_what_a_person_would() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("centre");
    let shown = ok(&["demo", folder.to_str().unwrap()]);
    for expected in ["| acme        | 5     | 1097   | GBP      |", "| cedar       | 4     | 181.25 | GBP      |", "read_parquet('"] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    let lines = sql(
        &folder,
        "SELECT customer_id, item, quantity, billed FROM invoice_lines WHERE billing_period = '2026-09' ORDER BY customer_id, item",
    );
    assert_eq!(
        lines,
        [
            "acme,Meeting room hours,14.5,290",
            "acme,Office 1.01,,450",
            "acme,Office 1.02,,260",
            "acme,Printed pages,1200,28",
            "acme,Receptionist calls,240,119",
            "birch,Meeting room hours,8,200",
            "birch,Office 1.03,,450",
            "birch,Printed pages,300,0",
            "birch,Receptionist calls,80,0",
            "cedar,Meeting room hours,1.25,31.25",
            "cedar,Office 1.04,,150",
            "cedar,Printed pages,100,0",
            "cedar,Receptionist calls,30,0",
            "lumen,Meeting room hours,20,360",
            "lumen,Office 2.01,,380",
            "lumen,Office 2.02,,380",
            "lumen,Office 2.03,,380",
            "lumen,Printed pages,3600,48",
            "lumen,Receptionist calls,900,420",
        ]
    );
    let totals = sql(&folder, "SELECT customer_id, billed FROM invoice_totals WHERE billing_period = '2026-09' ORDER BY customer_id");
    assert_eq!(totals, ["acme,1147", "birch,650", "cedar,181.25", "lumen,1968"]);
    assert_eq!(sql(&folder, "SELECT count(*) FROM rejected"), ["0"]);
}
