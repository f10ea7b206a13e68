/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.alerts

import dev.tideline.core.Done
import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Refused
import dev.tideline.core.Span
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.change
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies an alert by its source and its subject, so that repeats fall together. */
@JvmInline
value class AlertId(val raw: String) {
    override fun toString(): String = raw
}

/** Ranks alerts and says how long each may stay unanswered. */
enum class Severity(val patience: Span) {
    NOTICE(Span.ofHours(8)),
    WARNING(Span.ofHours(1)),
    ALARM(Span.ofMinutes(10)),
}

/** Describes something that a person has to look at. */
data class Alert(
    val id: AlertId,
    val severity: Severity,
    val message: String,
    val raisedAt: Moment,
    val repeats: Int = 0,
    val answeredBy: String? = null,
)

/** Tells that an alert was raised for the first time. */
data class AlertRaised(val alert: AlertId, val severity: Severity, override val at: Moment) : TideEvent

/** Tells that an alert was left unanswered for so long that it became more severe. */
data class AlertEscalated(val alert: AlertId, val severity: Severity, override val at: Moment) : TideEvent

/** Keeps the alerts. */
interface AlertStore : Store<AlertId, Alert> {
    /** Lists the alerts that nobody has answered, the most severe first. */
    fun listUnanswered(): List<Alert>
}

/** Keeps the alerts in memory. */
class InMemoryAlertStore : InMemoryStore<AlertId, Alert>("alert", Alert::id), AlertStore {
    override fun listUnanswered(): List<Alert> =
        listWhere { it.answeredBy == null }.sortedByDescending { it.severity }
}

/** Shows the alerts of the harbour and grows louder when nobody answers. */
class AlertBoard(
    private val alerts: AlertStore,
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<AlertBoard>()

    /** Raises an alert, or counts a repeat when it is already on the board. */
    fun raise(id: AlertId, severity: Severity, message: String): Outcome<Alert> =
        when (alerts.findById(id)) {
            is Done -> alerts.change(id) { it.copy(repeats = it.repeats + 1) }
            is Refused -> raiseNew(id, severity, message)
        }

    /** Answers an alert in the name of a person. */
    fun answer(id: AlertId, person: String): Outcome<Alert> =
        alerts.findById(id)
            .then { alert ->
                requireThat(alert.answeredBy == null, Reason.CONFLICT) { "${alert.answeredBy} was faster" }
            }
            .then { alerts.change(id) { it.copy(answeredBy = person) } }
            .onDone { log.note("alert.answered", "alert" to id, "person" to person) }

    /** Escalates every alert whose patience has run out and lists them. */
    fun escalate(): List<Alert> =
        alerts.listUnanswered()
            .filter { it.severity != Severity.ALARM && clock.now() - it.raisedAt >= it.severity.patience }
            .map { it.copy(severity = Severity.entries[it.severity.ordinal + 1], raisedAt = clock.now()) }
            .onEach { alert ->
                alerts.replace(alert)
                log.warn("alert.escalated", "alert" to alert.id, "severity" to alert.severity)
                events.publish(
                    AlertEscalated(alert = alert.id, severity = alert.severity, at = clock.now()),
                )
            }

    private fun raiseNew(id: AlertId, severity: Severity, message: String): Outcome<Alert> =
        alerts.add(Alert(id = id, severity = severity, message = message, raisedAt = clock.now()))
            .onDone {
                log.note("alert.raised", "alert" to id, "severity" to severity)
                events.publish(AlertRaised(alert = id, severity = severity, at = clock.now()))
            }
}
