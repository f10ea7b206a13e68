/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.weather

import dev.tideline.core.Events
import dev.tideline.core.Knots
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onRefused
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a weather station. */
@JvmInline
value class StationId(val raw: String) {
    override fun toString(): String = raw
}

/** Holds what a station measured at one moment. */
data class Reading(
    val station: StationId,
    val wind: Knots,
    val gust: Knots,
    val takenAt: Moment,
)

/** Names how the harbour works under the wind that blows. */
enum class HarbourMode { OPEN, CAREFUL, CLOSED }

/** Tells that the harbour was switched to another mode. */
data class HarbourModeChanged(
    val before: HarbourMode,
    val after: HarbourMode,
    override val at: Moment,
) : TideEvent

/** Watches the stations and closes the harbour before the storm does. */
class WeatherWatch(
    private val events: Events,
    private val clock: TideClock,
    private val memory: Span = Span.ofHours(3),
    private val slackKnots: Double = 4.0,
) {
    private val log = ledger<WeatherWatch>()
    private val readings = mutableListOf<Reading>()

    var mode: HarbourMode = HarbourMode.OPEN
        private set

    /** Takes in a reading and hands back the mode that follows from it. */
    fun observe(reading: Reading): Outcome<HarbourMode> =
        requireThat(reading.gust >= reading.wind, Reason.INVALID) {
            "gust ${reading.gust} is weaker than wind ${reading.wind}"
        }
            .then {
                requireThat(reading.takenAt > clock.now() - memory, Reason.TOO_LATE) {
                    "reading of ${reading.takenAt} is stale"
                }
            }
            .into {
                readings += reading
                readings.removeAll { it.takenAt <= clock.now() - memory }
                switchTo(modeFor(strongestGust()))
                mode
            }
            .onRefused { log.warn("weather.refused", "station" to reading.station, "reason" to it.reason) }

    private fun strongestGust(): Double = readings.maxOfOrNull { it.gust.raw } ?: 0.0

    private fun modeFor(gust: Double): HarbourMode {
        // Easing off needs less wind than tightening up, or the mode would flutter.
        val closing = if (mode == HarbourMode.CLOSED) CLOSED_FROM - slackKnots else CLOSED_FROM
        val caring = if (mode == HarbourMode.OPEN) CAREFUL_FROM else CAREFUL_FROM - slackKnots
        return when {
            gust >= closing -> HarbourMode.CLOSED
            gust >= caring -> HarbourMode.CAREFUL
            else -> HarbourMode.OPEN
        }
    }

    private fun switchTo(next: HarbourMode) {
        if (next == mode) return
        val before = mode
        mode = next
        log.note("harbour.mode", "before" to before, "after" to next)
        events.publish(HarbourModeChanged(before = before, after = next, at = clock.now()))
    }

    private companion object {
        const val CAREFUL_FROM = 28.0
        const val CLOSED_FROM = 45.0
    }
}
