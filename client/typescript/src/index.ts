/**
 * The client of Stepwell, an optimizer as a service: push gradients, pull parameters.
 *
 *     import { connect, tensor } from "stepwell";
 *
 *     const client = connect("127.0.0.1:50051");
 *     const run = await client.createRun("regression", { w: tensor(w, [4, 1]) }, { optimizer: "adam" });
 *     const { w } = await run.step({ w: gradient });
 *     await client.close();
 *
 * Arrays are flat typed arrays in C order; float16 and bfloat16 parameters are Float32Arrays here. Errors are typed, one
 * class per reason; errors.ts draws the tree.
 */

export {
    type ArrayLike,
    type Arrays,
    type ByName,
    type DType,
    type FloatArray,
    tensor,
    type Tensor,
} from "./arrays.js";
export { type Progress } from "./calls.js";
export { Client, connect, type ConnectOptions } from "./client.js";
export { CONTRACT } from "./connection.js";
export {
    type Answer,
    type Argument,
    type Checkpoint,
    type FlavorDescription,
    type GroupDescription,
    type Norms,
    type OptimizerDescription,
    type Outcome,
    type PartDescription,
    type Place,
    type RunDescription,
    type ScheduleDescription,
    type ServerDescription,
    type TableDescription,
    type Tally,
    type WorkerDescription,
} from "./descriptions.js";
export {
    type Details,
    ChangeRefused,
    CheckpointDamaged,
    CheckpointExists,
    ContractMismatch,
    EncodingNotAllowed,
    EtagMismatch,
    GradientRequired,
    IncompleteUpdate,
    InputRequired,
    Internal,
    InvalidEncoding,
    InvalidGradient,
    InvalidName,
    InvalidRange,
    InvalidRows,
    InvalidSpec,
    InvalidValue,
    LimitExceeded,
    MalformedRequest,
    MemoryExhausted,
    NonfiniteGradient,
    PolicyRefused,
    RowsNotSupported,
    RunDiffers,
    RunReplaced,
    RunRewound,
    SequenceGap,
    SequenceReused,
    SequenceTooOld,
    ServerStopping,
    ServerUnavailable,
    SharedMemoryUnavailable,
    StaleUpdate,
    StepwellError,
    StorageDisabled,
    StorageFailed,
    TableFull,
    TablesUnavailable,
    TimedOut,
    UnknownArgument,
    UnknownCheckpoint,
    UnknownEncoding,
    UnknownFlavor,
    UnknownGroup,
    UnknownOptimizer,
    UnknownParameter,
    UnknownPoint,
    UnknownPolicy,
    UnknownRun,
    UnknownSchedule,
    UnknownTable,
    UnknownTransform,
    UnknownWorker,
    UnknownWrapper,
    VersionMismatch,
    WorkerFenced,
} from "./errors.js";
export { type Gradient } from "./packing.js";
export { type Ids, type RowGradients } from "./rows.js";
export {
    type ChangeOptions,
    type ParameterDescription,
    type PullOptions,
    type RowOptions,
    Run,
    type StepOptions,
    type UpdateHyperparameters,
    type UpdateOptions,
} from "./run.js";
export { type GroupSpec, type Hyperparameters, type RunOptions, type Schedules, type TableSpec } from "./spec.js";
export { type FoundState, type State } from "./state.js";
export { type NonfiniteName, type Part, type Schedule, type Value } from "./values.js";
