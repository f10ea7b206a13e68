/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.tides

import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Window
import dev.tideline.core.done
import dev.tideline.core.ledger
import dev.tideline.core.refuse
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then
import kotlin.math.PI
import kotlin.math.cos

/** Identifies the gauge for which a tide is computed. */
@JvmInline
value class GaugeId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes one of the waves that add up to the tide. */
data class Constituent(
    val name: String,
    val amplitude: Metres,
    val periodHours: Double,
    val phaseHours: Double,
) {
    /** Computes how much the wave adds to the mean level at the moment. */
    fun heightAt(moment: Moment): Metres {
        val hours = moment.minute / 60.0 - phaseHours
        return amplitude * cos(2 * PI * hours / periodHours)
    }
}

/** Names the two moments of a tide at which the water stands still. */
enum class SlackKind { HIGH_WATER, LOW_WATER }

/** Marks a high or a low water. */
data class Slack(val kind: SlackKind, val moment: Moment, val height: Metres)

/** Predicts the height of the water at one gauge. */
class TideTable(
    val gauge: GaugeId,
    private val meanLevel: Metres,
    private val constituents: List<Constituent>,
    private val step: Span = Span.ofMinutes(5),
) {
    private val log = ledger<TideTable>()

    /** Computes the height of the water above chart datum. */
    fun heightAt(moment: Moment): Metres =
        constituents.fold(meanLevel) { height, wave -> height + wave.heightAt(moment) }

    /** Lists the high and the low waters within the window. */
    fun listSlacks(window: Window): List<Slack> =
        listSteps(window).zipWithNext().zipWithNext().mapNotNull { (left, right) ->
            val (before, middle) = left
            val after = right.second
            slackAt(heightAt(before), middle, heightAt(after))
        }

    /** Finds the first high water after the moment, looking two days ahead. */
    fun findNextHighWater(after: Moment): Outcome<Slack> {
        val slacks = listSlacks(Window(after, after + Span.ofDays(2)))
        return requireFound(slacks.firstOrNull { it.kind == SlackKind.HIGH_WATER }) {
            "no high water at $gauge within two days of $after"
        }
    }

    /** Lists the windows during which the water stands at least as high as asked. */
    fun listWindowsAbove(height: Metres, within: Window): List<Window> {
        val windows = mutableListOf<Window>()
        var opened: Moment? = null
        for (moment in listSteps(within)) {
            val high = heightAt(moment) >= height
            val start = opened
            if (high && start == null) opened = moment
            if (!high && start != null) {
                windows += Window(start, moment)
                opened = null
            }
        }
        opened?.let { windows += Window(it, within.until) }
        log.note("tide.searched", "gauge" to gauge, "height" to height, "windows" to windows.size)
        return windows
    }

    /** Finds the first window that is high and long enough for a passage over the sill. */
    fun findPassage(draught: Metres, sill: Metres, length: Span, within: Window): Outcome<Window> =
        requireThat(length <= within.length, Reason.INVALID) { "$length is longer than $within" }
            .then {
                val windows = listWindowsAbove(draught - sill, within)
                val passage = windows.firstOrNull { it.length >= length }
                passage?.let { done(it) }
                    ?: refuse(Reason.UNSAFE) { "$gauge has no water for $draught within $within" }
            }

    private fun slackAt(before: Metres, middle: Moment, after: Metres): Slack? {
        val height = heightAt(middle)
        val kind = when {
            height > before && height >= after -> SlackKind.HIGH_WATER
            height < before && height <= after -> SlackKind.LOW_WATER
            else -> return null
        }
        return Slack(kind = kind, moment = middle, height = height)
    }

    private fun listSteps(window: Window): List<Moment> =
        generateSequence(window.from) { it + step }.takeWhile { it in window }.toList()
}
