/**
 * What can go wrong: one class per ErrorReason of the contract.
 *
 *     StepwellError
 *     ├── ContractMismatch, MalformedRequest, Internal
 *     ├── InvalidName, InvalidValue, InvalidSpec
 *     ├── UnknownOptimizer, UnknownFlavor, UnknownSchedule, UnknownTransform, UnknownWrapper, UnknownArgument,
 *     │   UnknownEncoding, UnknownPolicy
 *     ├── PolicyRefused            a change of the policy that would leave workers waiting for ever
 *     ├── StaleUpdate              taken at parameters that are older than the policy allows; pull, and go on from there
 *     ├── UnknownRun, UnknownGroup, UnknownParameter, UnknownWorker, UnknownCheckpoint, UnknownPoint, UnknownTable
 *     ├── RunDiffers               a run of this name exists with another spec
 *     ├── RunReplaced              the run was deleted, and perhaps made anew, since it was joined
 *     ├── InvalidGradient          wrong name, shape or type; found before anything is sent
 *     ├── EncodingNotAllowed, InvalidEncoding
 *     ├── InvalidRange, IncompleteUpdate, GradientRequired, InputRequired, NonfiniteGradient
 *     ├── InvalidRows, RowsNotSupported, TableFull, TablesUnavailable
 *     ├── SequenceReused, SequenceTooOld, SequenceGap
 *     ├── WorkerFenced             a newer join under the same worker name has taken over
 *     ├── RunRewound               the run went back to an older state
 *     ├── ChangeRefused, EtagMismatch, VersionMismatch
 *     ├── MemoryExhausted, LimitExceeded, SharedMemoryUnavailable
 *     ├── StorageDisabled, StorageFailed, CheckpointExists, CheckpointDamaged
 *     ├── ServerStopping           retried by the SDK; thrown only where a call must not be repeated
 *     ├── ServerUnavailable        no server answered within the patience
 *     └── TimedOut                 the call did not end within its limit, or the server said nothing
 *
 * Every message says what was got, what was expected, and what to do.
 */

import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";

import { ErrorInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { StatusSchema } from "./generated/google/rpc/status_pb.js";
import type { Error as ErrorMessage } from "./generated/stepwell/v1/errors_pb.js";
import { ErrorReason } from "./generated/stepwell/v1/errors_pb.js";

/** The facts of an error for programs: short names to short texts. */
export type Details = Readonly<Record<string, string>>;

const ERROR_DOMAIN = "stepwell";
const REASON_PREFIX = "ERROR_REASON_";

/**
 * Base of all errors; itself thrown only for a reason that a newer server has and this SDK does not know.
 *
 * reason: the name in the contract without its prefix, such as "UNKNOWN_RUN".
 */
export class StepwellError extends Error {
    declare readonly reason: string;
    readonly details: Details;

    constructor(message: string, details: Details = {}) {
        super(message);
        this.details = details;
    }
}

export class ContractMismatch extends StepwellError {}
export class MalformedRequest extends StepwellError {}
export class InvalidName extends StepwellError {}
export class UnknownOptimizer extends StepwellError {}
export class UnknownFlavor extends StepwellError {}
export class UnknownSchedule extends StepwellError {}
export class UnknownArgument extends StepwellError {}
export class UnknownRun extends StepwellError {}
export class UnknownGroup extends StepwellError {}
export class UnknownParameter extends StepwellError {}
export class UnknownWorker extends StepwellError {}
export class UnknownCheckpoint extends StepwellError {}
export class InvalidValue extends StepwellError {}
export class InvalidSpec extends StepwellError {}
export class RunDiffers extends StepwellError {}
export class RunReplaced extends StepwellError {}
export class InvalidGradient extends StepwellError {}
export class InvalidRange extends StepwellError {}
export class IncompleteUpdate extends StepwellError {}
export class GradientRequired extends StepwellError {}
export class NonfiniteGradient extends StepwellError {}
export class SequenceReused extends StepwellError {}
export class SequenceTooOld extends StepwellError {}
export class SequenceGap extends StepwellError {}
export class WorkerFenced extends StepwellError {}

/**
 * The run went back to an older state: a crash lost what was not stored, or somebody restored a checkpoint.
 *
 * The update was not applied and is never sent again. The next push joins the run as it is now.
 */
export class RunRewound extends StepwellError {
    /** The newest version that this worker had been told of. */
    get acknowledgedVersion(): number {
        return Number(this.details["acknowledged_version"] ?? 0);
    }

    /** The version that the run is at now. */
    get version(): number {
        return Number(this.details["version"] ?? 0);
    }
}

export class ChangeRefused extends StepwellError {}
export class EtagMismatch extends StepwellError {}
export class VersionMismatch extends StepwellError {}
export class MemoryExhausted extends StepwellError {}
export class LimitExceeded extends StepwellError {}
export class StorageDisabled extends StepwellError {}
export class StorageFailed extends StepwellError {}
export class CheckpointExists extends StepwellError {}
export class CheckpointDamaged extends StepwellError {}
export class ServerStopping extends StepwellError {}
export class ServerUnavailable extends StepwellError {}
export class TimedOut extends StepwellError {}
export class Internal extends StepwellError {}
export class UnknownTransform extends StepwellError {}
export class UnknownWrapper extends StepwellError {}
export class UnknownPoint extends StepwellError {}
export class InputRequired extends StepwellError {}
export class SharedMemoryUnavailable extends StepwellError {}
export class UnknownEncoding extends StepwellError {}
export class EncodingNotAllowed extends StepwellError {}
export class InvalidEncoding extends StepwellError {}
export class UnknownPolicy extends StepwellError {}
export class StaleUpdate extends StepwellError {}
export class PolicyRefused extends StepwellError {}
export class UnknownTable extends StepwellError {}
export class InvalidRows extends StepwellError {}
export class RowsNotSupported extends StepwellError {}
export class TableFull extends StepwellError {}
export class TablesUnavailable extends StepwellError {}

type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;
type ErrorClass = new (message: string, details?: Details) => StepwellError;

/** The class of every reason. A reason that the contract gains and that has none here does not compile. */
export const CLASS_BY_REASON: Readonly<Record<Reason, ErrorClass>> = {
    CONTRACT_MISMATCH: ContractMismatch,
    MALFORMED_REQUEST: MalformedRequest,
    INVALID_NAME: InvalidName,
    UNKNOWN_OPTIMIZER: UnknownOptimizer,
    UNKNOWN_FLAVOR: UnknownFlavor,
    UNKNOWN_SCHEDULE: UnknownSchedule,
    UNKNOWN_ARGUMENT: UnknownArgument,
    UNKNOWN_RUN: UnknownRun,
    UNKNOWN_GROUP: UnknownGroup,
    UNKNOWN_PARAMETER: UnknownParameter,
    UNKNOWN_WORKER: UnknownWorker,
    UNKNOWN_CHECKPOINT: UnknownCheckpoint,
    INVALID_VALUE: InvalidValue,
    INVALID_SPEC: InvalidSpec,
    RUN_DIFFERS: RunDiffers,
    RUN_REPLACED: RunReplaced,
    INVALID_GRADIENT: InvalidGradient,
    INVALID_RANGE: InvalidRange,
    INCOMPLETE_UPDATE: IncompleteUpdate,
    GRADIENT_REQUIRED: GradientRequired,
    NONFINITE_GRADIENT: NonfiniteGradient,
    SEQUENCE_REUSED: SequenceReused,
    SEQUENCE_TOO_OLD: SequenceTooOld,
    SEQUENCE_GAP: SequenceGap,
    WORKER_FENCED: WorkerFenced,
    RUN_REWOUND: RunRewound,
    CHANGE_REFUSED: ChangeRefused,
    ETAG_MISMATCH: EtagMismatch,
    VERSION_MISMATCH: VersionMismatch,
    MEMORY_EXHAUSTED: MemoryExhausted,
    LIMIT_EXCEEDED: LimitExceeded,
    STORAGE_DISABLED: StorageDisabled,
    STORAGE_FAILED: StorageFailed,
    CHECKPOINT_EXISTS: CheckpointExists,
    CHECKPOINT_DAMAGED: CheckpointDamaged,
    SERVER_STOPPING: ServerStopping,
    SERVER_UNAVAILABLE: ServerUnavailable,
    TIMED_OUT: TimedOut,
    INTERNAL: Internal,
    UNKNOWN_TRANSFORM: UnknownTransform,
    UNKNOWN_WRAPPER: UnknownWrapper,
    UNKNOWN_POINT: UnknownPoint,
    INPUT_REQUIRED: InputRequired,
    SHARED_MEMORY_UNAVAILABLE: SharedMemoryUnavailable,
    UNKNOWN_ENCODING: UnknownEncoding,
    ENCODING_NOT_ALLOWED: EncodingNotAllowed,
    INVALID_ENCODING: InvalidEncoding,
    UNKNOWN_POLICY: UnknownPolicy,
    STALE_UPDATE: StaleUpdate,
    POLICY_REFUSED: PolicyRefused,
    UNKNOWN_TABLE: UnknownTable,
    INVALID_ROWS: InvalidRows,
    ROWS_NOT_SUPPORTED: RowsNotSupported,
    TABLE_FULL: TableFull,
    TABLES_UNAVAILABLE: TablesUnavailable,
};

// On the prototypes, and from the table rather than from the classes' own names, which a minifier changes.
for (const [reason, errorClass] of [["", StepwellError], ...Object.entries(CLASS_BY_REASON)] as [
    string,
    ErrorClass,
][]) {
    const name = reason
        ? reason.toLowerCase().replace(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase())
        : "";
    const prototype = errorClass.prototype as object;
    Object.defineProperty(prototype, "name", { value: name || "StepwellError", configurable: true, writable: true });
    Object.defineProperty(prototype, "reason", { value: reason, configurable: true, writable: true });
}

/** The typed error for the name of a reason, with or without its prefix. */
export function errorFromReason(name: string, message: string, details: Details): StepwellError {
    const reason = name.startsWith(REASON_PREFIX) ? name.slice(REASON_PREFIX.length) : name;
    const known = Object.hasOwn(CLASS_BY_REASON, reason) ? CLASS_BY_REASON[reason as Reason] : StepwellError;
    const error = new known(message, { ...details });
    if (known === StepwellError) {
        Object.defineProperty(error, "reason", { value: reason }); // says more than the base class
    }
    return error;
}

/** The typed error for the Error of an exchange on a worker's stream. */
export function errorFromMessage(error: ErrorMessage): StepwellError {
    const name = error.reason in ErrorReason ? ErrorReason[error.reason] : String(error.reason);
    return errorFromReason(name, error.message, error.details);
}

/** The typed error in a failed call's google.rpc.Status; undefined if it holds no ErrorInfo of Stepwell's. */
export function errorFromStatus(status: Uint8Array, message: string): StepwellError | undefined {
    try {
        const rich = fromBinary(StatusSchema, status);
        for (const packed of rich.details) {
            const info = anyUnpack(packed, ErrorInfoSchema);
            if (info?.domain === ERROR_DOMAIN) {
                return errorFromReason(info.reason, rich.message || message, info.metadata);
            }
        }
    } catch {
        // Not a Status: whatever answered is no Stepwell server.
    }
    return undefined;
}
