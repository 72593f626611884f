//! DataFusion sessions for rules: only allowed functions, bounded memory, decimals instead of floats, UTC.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::TrackConsumersPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SessionState, SessionStateDefaults};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::memory_pool::SharedPool;
use crate::{functions, planning};

/// Memory, parallelism and time of sessions.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// Bytes that a query's operators may hold.
    pub memory_bytes: usize,
    /// Partitions of a query.
    pub partitions: usize,
    /// How long one call of the evaluator may take, with the rules that the rule reads.
    pub evaluation_max: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            partitions: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            evaluation_max: Duration::from_secs(600),
        }
    }
}

/// A runtime whose operators share one bounded memory pool and spill to the temporary folder when it is used up.
///
/// # Errors
/// When the temporary folder cannot be used.
pub fn runtime(limits: &SessionLimits) -> Result<Arc<RuntimeEnv>> {
    let top = NonZeroUsize::MIN.saturating_add(4);
    let pool = TrackConsumersPool::new(SharedPool::new(limits.memory_bytes), top);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
        .build_arc()
}

/// A session on `runtime` in which only the functions of rules exist.
#[must_use]
pub fn session(runtime: Arc<RuntimeEnv>, limits: &SessionLimits) -> SessionContext {
    SessionContext::new_with_state(state(runtime, limits))
}

fn state(runtime: Arc<RuntimeEnv>, limits: &SessionLimits) -> SessionState {
    let mut config = SessionConfig::new().with_target_partitions(limits.partitions.max(1)).with_information_schema(false);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    // Lifting needs subqueries as joins.
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    options.execution.parquet.schema_force_view_types = false;
    // The two plans may differ in what they know not to be null, as of a coalesce in a branch of a union.
    options.execution.skip_physical_aggregate_schema_check = true;
    options.execution.time_zone = Some("UTC".to_owned());
    let mut planners = functions::operator_planners();
    planners.extend(SessionStateDefaults::default_expr_planners());
    SessionStateBuilder::new()
        .with_config(config)
        .with_analyzer_rules(planning::analyzer_rules())
        .with_optimizer_rules(planning::optimizer_rules())
        .with_physical_optimizer_rules(planning::physical_optimizer_rules())
        .with_physical_optimizer_rule(Arc::new(YieldingJoins))
        .with_runtime_env(runtime)
        .with_scalar_functions(functions::scalar_functions())
        .with_aggregate_functions(functions::aggregate_functions())
        .with_window_functions(functions::window_functions())
        .with_expr_planners(planners)
        .build()
}

/// Joins let go of the thread now and then: a small input can be joined to billions of rows, in which no scan would
/// yield, and the time limit of an evaluation would never be seen.
#[derive(Debug)]
struct YieldingJoins;

impl PhysicalOptimizerRule for YieldingJoins {
    fn name(&self) -> &str {
        "YieldingJoins"
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let wrapped = plan.transform_up(|plan| {
            let grows = plan.name().ends_with("JoinExec") || plan.name() == "UnnestExec";
            Ok(if grows { Transformed::yes(Arc::new(CooperativeExec::new(plan)) as _) } else { Transformed::no(plan) })
        });
        Ok(wrapped?.data)
    }

    fn schema_check(&self) -> bool {
        true
    }
}
